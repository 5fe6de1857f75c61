import { expect } from "chai";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

import { readInto } from "../../../src/net/read-into.js";
import { waitFor } from "../../tools/wait-for.js";

describe("readInto()", () => {
  let server: Server;
  let client: Socket;
  let accepted: Socket;

  beforeEach(async () => {
    server = createServer({ pauseOnConnect: true, allowHalfOpen: true });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const connection = once(server, "connection");
    client = connect((server.address() as AddressInfo).port, "127.0.0.1");
    [accepted] = (await connection) as [Socket];
  });

  afterEach(() => {
    client.destroy();
    server.close();
  });

  it("can be done on this Node.js, and reads into the memory it is given, piece by piece", async () => {
    const memory = Buffer.alloc(16);
    let filled = 0;
    const socket = readInto(accepted, {
      target: () => memory.subarray(filled, filled + 4),
      received: (lengthBytes) => {
        filled += lengthBytes;
        return true;
      },
    });
    if (socket === null)
      throw new Error("connections can't be moved: the slow way would be taken, unnoticed");
    const ended = once(socket, "end");
    socket.resume();
    client.end("0123456789");
    await ended;
    expect(String(memory.subarray(0, filled))).to.equal("0123456789");
    const closed = once(socket, "close");
    socket.end("answer");
    const [answer] = (await once(client, "data")) as [Buffer];
    expect(String(answer)).to.equal("answer");
    await closed;
  });

  it("stops when the reader has enough, until it is resumed", async () => {
    const pieces: string[] = [];
    const memory = Buffer.alloc(3);
    const socket = readInto(accepted, {
      target: () => memory,
      received: (lengthBytes) => {
        pieces.push(String(memory.subarray(0, lengthBytes)));
        return false;
      },
    });
    socket?.resume();
    client.write("abcdef");
    await waitFor(
      "the first piece",
      () => pieces.length,
      (count) => count === 1,
    );
    socket?.resume();
    await waitFor(
      "the second piece",
      () => pieces.length,
      (count) => count === 2,
    );
    expect(pieces).to.deep.equal(["abc", "def"]);
    socket?.destroy();
  });

  it("leaves alone a connection that is closed already", () => {
    accepted.destroy();
    expect(readInto(accepted, { target: () => Buffer.alloc(1), received: () => true })).to.equal(null);
  });
});

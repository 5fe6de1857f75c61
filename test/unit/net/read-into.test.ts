import { expect } from "chai";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { type TLSSocket, connect as connectTls } from "node:tls";

import { readInto } from "../../../src/net/read-into.js";
import { TlsAcceptor } from "../../../src/net/tls/acceptor.js";
import { tlsClientOptions } from "../../../src/net/tls/client.js";
import { PSK, writePskFile } from "../../tools/certificates.js";
import { Random, SEED } from "../../tools/seed.js";
import { waitFor } from "../../tools/wait-for.js";
import { type Workspace, useWorkspace } from "../../tools/workspace.js";

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
    const isDirect = readInto(accepted, {
      target: () => memory.subarray(filled, filled + 4),
      received: (lengthBytes) => {
        filled += lengthBytes;
        return true;
      },
    });
    if (!isDirect) throw new Error("it can't be done: the slow way would be taken, unnoticed");
    const ended = once(accepted, "end");
    accepted.resume();
    client.end("0123456789");
    await ended;
    expect(String(memory.subarray(0, filled))).to.equal("0123456789");
    const closed = once(accepted, "close");
    accepted.end("answer");
    const [answer] = (await once(client, "data")) as [Buffer];
    expect(String(answer)).to.equal("answer");
    await closed;
  });

  it("stops when the reader has enough, until it is resumed", async () => {
    const pieces: string[] = [];
    const memory = Buffer.alloc(3);
    readInto(accepted, {
      target: () => memory,
      received: (lengthBytes) => {
        pieces.push(String(memory.subarray(0, lengthBytes)));
        return false;
      },
    });
    accepted.resume();
    client.write("abcdef");
    await waitFor(
      "the first piece",
      () => pieces.length,
      (count) => count === 1,
    );
    accepted.resume();
    await waitFor(
      "the second piece",
      () => pieces.length,
      (count) => count === 2,
    );
    expect(pieces).to.deep.equal(["abc", "def"]);
    accepted.destroy();
  });

  it("leaves alone a connection that is closed already", () => {
    accepted.destroy();
    expect(readInto(accepted, { target: () => Buffer.alloc(1), received: () => true })).to.equal(false);
  });
});

describe("readInto() of a TLS session", () => {
  const CONTENT_BYTES = 1024 * 1024;
  const workspace = useWorkspace();

  it("brings every byte once and in order, and the end last, however it is stopped and resumed", async () => {
    const random = new Random(SEED);
    const content = Buffer.alloc(CONTENT_BYTES, random.bytes(64 * 1024 + 1));
    const { server, client } = await session(workspace);
    const received = Buffer.alloc(CONTENT_BYTES + 1);
    let filledBytes = 0;
    let keptBytes = 0;
    const later = (): void => {
      setTimeout(() => server.resume(), random.below(2));
    };
    const isDirect = readInto(server, {
      target: () => received.subarray(filledBytes, filledBytes + 1 + random.below(32 * 1024)),
      received: (lengthBytes) => {
        filledBytes += lengthBytes;
        const readsOn = random.below(8) > 0;
        if (!readsOn) later();
        return readsOn;
      },
    });
    if (!isDirect) throw new Error("it can't be done: the slow way would be taken, unnoticed");
    server.on("data", (chunk: Buffer) => {
      keptBytes += chunk.copy(received, filledBytes);
      filledBytes += chunk.length;
      if (random.below(2) > 0) return;
      server.pause();
      later();
    });
    const ended = once(server, "end");
    client.end(content);
    await ended;
    expect(filledBytes).to.equal(CONTENT_BYTES);
    expect(received.subarray(0, CONTENT_BYTES).equals(content)).to.equal(true);
    // Both ways were taken.
    expect(keptBytes).to.be.within(1, CONTENT_BYTES - 1);
  });

  it("brings first what came before", async () => {
    const { server, client } = await session(workspace);
    client.write("before");
    await waitFor(
      "the first bytes",
      () => server.readableLength,
      (lengthBytes) => lengthBytes === 6,
    );
    const memory = Buffer.alloc(64);
    let filledBytes = 0;
    readInto(server, {
      target: () => memory.subarray(filledBytes),
      received: (lengthBytes) => {
        filledBytes += lengthBytes;
        return true;
      },
    });
    server.on("data", (chunk: Buffer) => {
      filledBytes += chunk.copy(memory, filledBytes);
    });
    const ended = once(server, "end");
    client.write(", behind");
    client.end(", last");
    await ended;
    expect(String(memory.subarray(0, filledBytes))).to.equal("before, behind, last");
  });

  it("reads nothing into memory while it is paused", async () => {
    const { server, client } = await session(workspace);
    const memory = Buffer.alloc(16 * 1024);
    let reads = 0;
    readInto(server, {
      target: () => memory,
      received: () => {
        reads++;
        return false;
      },
    });
    const kept: Buffer[] = [];
    server.on("data", (chunk: Buffer) => kept.push(chunk));
    const records = ["a", "b", "c"].map((letter) => Buffer.alloc(16 * 1024, letter));
    client.end(Buffer.concat(records));
    await waitFor(
      "the other records",
      () => server.readableLength,
      (lengthBytes) => lengthBytes === 2 * 16 * 1024,
    );
    expect(reads).to.equal(1);
    expect(memory.equals(Buffer.alloc(16 * 1024, "a"))).to.equal(true);
    const ended = once(server, "end");
    server.resume();
    await ended;
    expect(Buffer.concat(kept).equals(Buffer.concat(records.slice(1)))).to.equal(true);
  });
});

/** Both ends of a session by a pre-shared key; they go with the workspace. */
async function session(workspace: Workspace): Promise<{ server: Socket; client: TLSSocket }> {
  const file = await writePskFile(workspace.path("keys.psk"), { user: PSK });
  const acceptor = new TlsAcceptor({
    credentials: { kind: "psk", file },
    verifyPeer: true,
    allowedNames: [],
  });
  const listener = createServer({ pauseOnConnect: true });
  listener.listen(0, "127.0.0.1");
  await once(listener, "listening");
  const connection = once(listener, "connection");
  const client = connectTls({
    ...tlsClientOptions({ pskFile: file }, null),
    port: (listener.address() as AddressInfo).port,
    host: "127.0.0.1",
  });
  const [plain] = (await connection) as [Socket];
  listener.close();
  const [server] = await Promise.all([acceptor.secure(plain), once(client, "secureConnect")]);
  workspace.onEnd(() => {
    client.destroy();
    server.destroy();
    return Promise.resolve();
  });
  return { server, client };
}

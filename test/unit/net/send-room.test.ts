import { expect } from "chai";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { SendRoom } from "../../../src/net/send-room.js";

const WIDE_SOCKETS = 16;
const MUCH = Buffer.alloc(8 * 1024 * 1024);

describe("SendRoom", () => {
  let directory: string;
  let server: Server;
  let sockets: Socket[];

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "send-room-"));
    server = createServer({ pauseOnConnect: true });
    sockets = [];
  });

  afterEach(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
    await rm(directory, { recursive: true });
  });

  async function listen(where: string | number): Promise<void> {
    server.listen(where);
    await once(server, "listening");
  }

  /** The server's side of a new connection, whose client reads nothing. */
  async function accept(): Promise<Socket> {
    const address = server.address() as AddressInfo | string;
    const connection = once(server, "connection");
    const client = typeof address === "string" ? connect(address) : connect(address.port, "127.0.0.1");
    const [accepted] = (await connection) as [Socket];
    sockets.push(client, accepted);
    return accepted;
  }

  /** How much the kernel takes of a long write while nobody reads. */
  function taken(socket: Socket): number {
    socket.write(MUCH);
    const { fd } = (socket as Socket & { _handle: { fd: number } })._handle;
    expect(fd).to.be.at.least(0);
    return MUCH.length - (socket as Socket & { _handle: { writeQueueSize: number } })._handle.writeQueueSize;
  }

  it("lets a unix socket send more than it would before anybody reads", async () => {
    await listen(join(directory, "socket"));
    const usual = taken(await accept());
    const socket = await accept();
    expect(new SendRoom().widen(socket)).to.equal(true);
    expect(usual).to.be.lessThan(MUCH.length);
    expect(taken(socket)).to.be.greaterThan(usual);
  });

  it("has room for a few sockets at a time, and for others when they are closed", async () => {
    await listen(join(directory, "socket"));
    const room = new SendRoom();
    const first = await accept();
    expect(room.widen(first)).to.equal(true);
    for (let i = 1; i < WIDE_SOCKETS; i++) expect(room.widen(await accept())).to.equal(true);
    const another = await accept();
    expect(room.widen(another)).to.equal(false);
    expect(room.widen(first)).to.equal(true);
    const closed = once(first, "close");
    first.destroy();
    await closed;
    expect(room.widen(another)).to.equal(true);
  });

  it("leaves TCP to its own growth, and a closed socket alone", async () => {
    await listen(0);
    const tcp = await accept();
    expect(new SendRoom().widen(tcp)).to.equal(false);
    const closed = once(tcp, "close");
    tcp.destroy();
    await closed;
    expect(new SendRoom().widen(tcp)).to.equal(false);
  });
});

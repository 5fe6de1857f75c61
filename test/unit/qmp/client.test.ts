import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { once } from "node:events";
import { createServer } from "node:net";
import type { AddressInfo, Server, Socket } from "node:net";
import { join } from "node:path";
import { expect } from "chai";
import { z } from "zod";
import { LinkError, ProtocolError, StateError, UnreachableError } from "../../../src/errors.js";
import type { Address } from "../../../src/net/address.js";
import { QmpClient } from "../../../src/qmp/client.js";
import { qmpCommand } from "../../../src/qmp/command.js";
import { QmpError } from "../../../src/qmp/errors.js";
import { stopThisProcess } from "../../tools/stopped-process.js";
import { startServer } from "./harness.js";
import type { Harness } from "./harness.js";

const nothing = z.strictObject({});

function rejection(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    (value) => expect.fail(`resolved with ${JSON.stringify(value)}`),
    (reason: unknown) => reason,
  );
}

describe("qmp/client", () => {
  let harness: Harness;

  beforeEach(async () => {
    harness = await startServer([
      qmpCommand({
        name: "double",
        arguments: z.strictObject({ n: z.int() }),
        run: ({ n }) => Promise.resolve({ n: 2 * n }),
      }),
      qmpCommand({
        name: "refuse",
        arguments: nothing,
        run: () => Promise.reject(new StateError("already-running", "Block replication is running or done")),
      }),
      qmpCommand({
        name: "answer and stop",
        arguments: nothing,
        run: () => {
          harness.server.emit("STOPPED");
          // The answer is on its way by then.
          setImmediate(() => {
            stopThisProcess(1500);
          });
          return Promise.resolve();
        },
      }),
      qmpCommand({ name: "never", arguments: nothing, run: () => new Promise(() => undefined) }),
    ]);
  });

  afterEach(() => harness.stop());

  it("runs commands, several at a time", async () => {
    const client = await QmpClient.connect(harness.address);
    const answers = await Promise.all([1, 2, 3].map((n) => client.execute("double", { n })));
    expect(answers).to.deep.equal([{ n: 2 }, { n: 4 }, { n: 6 }]);
    await client.close();
    expect(await client.ended).to.equal(null);
  });

  it("rejects with the server's class, text, code and kind", async () => {
    const client = await QmpClient.connect(harness.address);
    const error = await rejection(client.execute("refuse"));
    expect(error).to.be.instanceOf(QmpError).and.include({
      qmpClass: "GenericError",
      code: "already-running",
      kind: "state",
      message: "Block replication is running or done",
    });
    expect(await rejection(client.execute("nope"))).to.include({ qmpClass: "CommandNotFound" });
    await client.close();
  });

  it("gives up a command that isn't answered in time", async () => {
    const client = await QmpClient.connect(harness.address);
    const error = await rejection(client.execute("never", {}, { timeoutMs: 20 }));
    expect(error).to.be.instanceOf(LinkError).with.property("code", "timeout");
    await client.close();
  });

  it("takes the answer and the event that came while this process was stopped for longer than they may take", async () => {
    const client = await QmpClient.connect(harness.address);
    const limit = { timeoutMs: 1000 };
    const [answer, event] = await Promise.all([
      client.execute("answer and stop", {}, limit),
      client.waitForEvent("STOPPED", limit),
    ]);
    expect(answer).to.deep.equal({});
    expect(event).to.include({ event: "STOPPED" });
    await client.close();
  });

  it("hears events, and waits for one", async () => {
    const client = await QmpClient.connect(harness.address);
    const heard: string[] = [];
    const stop = client.onEvent(({ event }) => heard.push(event));
    const waited = client.waitForEvent("JOB", { matches: ({ data }) => data["device"] === "b" });
    harness.server.emit("STOP");
    harness.server.emit("JOB", { device: "a" });
    harness.server.emit("JOB", { device: "b" });
    expect(await waited).to.deep.equal({
      event: "JOB",
      data: { device: "b" },
      timestamp: { seconds: 1, microseconds: 500_250 },
    });
    expect(heard).to.deep.equal(["STOP", "JOB", "JOB"]);
    stop();
    harness.server.emit("STOP");
    await client.execute("double", { n: 1 });
    expect(heard).to.have.length(3);
    expect(await rejection(client.waitForEvent("NEVER", { timeoutMs: 10 }))).to.have.property(
      "code",
      "timeout",
    );
    await client.close();
  });

  it("names the address that nobody listens on", async () => {
    const address: Address = { kind: "unix", path: join(harness.directory, "nobody.sock") };
    const error = await rejection(QmpClient.connect(address));
    expect(error).to.be.instanceOf(UnreachableError);
    expect((error as Error).message).to.match(
      /^can't reach a QMP server at unix:.*nobody\.sock: connect ENOENT/,
    );
  });

  describe("with a server that misbehaves", () => {
    let server: Server;
    let address: Address;
    const sockets = new Set<Socket>();

    async function serve(onConnection: (socket: Socket) => void): Promise<void> {
      server = createServer((socket) => {
        sockets.add(socket);
        socket.on("error", () => socket.destroy());
        onConnection(socket);
      });
      const path = join(harness.directory, "bad.sock");
      server.listen(path);
      await once(server, "listening");
      address = { kind: "unix", path };
    }

    /** Greets, and answers the negotiation; then `next` gets each request. */
    function polite(next: (socket: Socket) => void): (socket: Socket) => void {
      return (socket) => {
        socket.write('{"QMP": {}}\n');
        socket.once("data", () => {
          socket.write('{"return": {}, "id": 1}\n');
          socket.on("data", () => {
            next(socket);
          });
        });
      };
    }

    afterEach(async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    });

    it("gives up one that never greets", async () => {
      await serve(() => undefined);
      const error = await rejection(QmpClient.connect(address, { timeoutMs: 20 }));
      expect(error).to.be.instanceOf(UnreachableError);
      expect((error as Error).message).to.include("no answer within 20 ms");
    });

    it("gives up one that never greets when nobody waits for it any more", async () => {
      const stopping = new AbortController();
      await serve(() => {
        stopping.abort();
      });
      const error = await rejection(
        QmpClient.connect(address, { timeoutMs: 600_000, signal: stopping.signal }),
      );
      expect(error).to.be.instanceOf(UnreachableError);
      expect((error as Error).message).to.include("nobody waits for it any more");
    });

    it("gives up one that speaks something else", async () => {
      await serve((socket) => socket.write("SSH-2.0-OpenSSH\r\n"));
      expect(await rejection(QmpClient.connect(address))).to.be.instanceOf(UnreachableError);
    });

    it("rejects what is open when the connection is lost, and what comes after", async () => {
      await serve(polite((socket) => socket.destroy()));
      const client = await QmpClient.connect(address);
      const waiting = rejection(client.waitForEvent("E"));
      expect(await rejection(client.execute("x"))).to.be.instanceOf(LinkError);
      expect(await waiting)
        .to.be.instanceOf(LinkError)
        .with.property("code", "connection-lost");
      expect(await client.ended).to.be.instanceOf(LinkError);
      expect(await rejection(client.execute("x"))).to.be.instanceOf(LinkError);
    });

    it("cuts one whose replies are no JSON", async () => {
      await serve(polite((socket) => socket.write("!\n")));
      const client = await QmpClient.connect(address);
      expect(await rejection(client.execute("x"))).to.be.instanceOf(ProtocolError);
      expect(await client.ended).to.be.instanceOf(ProtocolError);
    });

    it("ends the connection to one that answers a command without its number", async () => {
      await serve(polite((socket) => socket.write('{"error": {"class": "GenericError", "desc": "no"}}\n')));
      const client = await QmpClient.connect(address);
      expect(await rejection(client.execute("x"))).to.be.instanceOf(ProtocolError);
      expect(await client.ended).to.be.instanceOf(ProtocolError);
    });

    it("ignores the reply to a command whose time had run out", async () => {
      let requests = 0;
      await serve(
        polite((socket) => {
          requests += 1;
          if (requests === 2) socket.write('{"return": "late", "id": 2}{"return": "now", "id": 3}');
        }),
      );
      const client = await QmpClient.connect(address);
      expect(await rejection(client.execute("x", {}, { timeoutMs: 10 }))).to.have.property("code", "timeout");
      expect(await client.execute("y")).to.equal("now");
      await client.close();
    });
  });

  it("has nothing carried out that was not delivered when it was closed, and that nobody counts on any more", async () => {
    let received = "";
    const server = createServer((socket) => {
      socket.on("error", () => socket.destroy());
      socket.write('{"QMP": {}}\n');
      socket.once("data", () => {
        socket.write('{"return": {}, "id": 1}\n');
        // As when the network lets nothing through: the client's kernel has it, and this side gets it later.
        socket.pause();
        socket.on("data", (chunk: Buffer) => (received += chunk.toString()));
      });
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const accepted = once(server, "connection") as Promise<[Socket]>;
    const { port } = server.address() as AddressInfo;
    const client = await QmpClient.connect({ kind: "tcp", host: "127.0.0.1", port });
    const [socket] = await accepted;
    const content = "x".repeat(256 * 1024);
    expect(await rejection(client.execute("take", { content }, { timeoutMs: 50 }))).to.be.instanceOf(
      LinkError,
    );
    await client.close();
    // Not by once(), which rejects for the error that a connection which was broken off may end with.
    const closed = new Promise((resolve) => socket.once("close", resolve));
    socket.resume();
    await closed;
    server.close();
    expect(received.includes("\n")).to.equal(false);
  });

  it("commands a real QEMU", async () => {
    const path = join(harness.directory, "qemu.sock");
    const machine = ["-machine", "none", "-nodefaults", "-display", "none", "-S", "-m", "16"];
    const qemu = spawn("qemu-system-x86_64", [...machine, "-qmp", `unix:${path},server=on,wait=off`], {
      stdio: "ignore",
    });
    const exited = once(qemu, "exit");
    try {
      // QEMU has no other sign that it listens.
      while (!existsSync(path) && qemu.exitCode === null)
        await new Promise((resolve) => setTimeout(resolve, 20));
      const client = await QmpClient.connect({ kind: "unix", path });
      expect(await client.execute("query-xen-replication-status")).to.deep.equal({ error: false });
      expect(await client.execute("query-qmp-schema"))
        .to.be.an("array")
        .with.length.above(100);
      expect(await rejection(client.execute("xen-set-replication"))).to.include({
        qmpClass: "GenericError",
        code: "qmp-error",
        kind: "failed",
        message: "Parameter 'enable' is missing",
      });
      const shutdown = client.waitForEvent("SHUTDOWN");
      await client.execute("quit");
      expect((await shutdown).data).to.deep.equal({ guest: false, reason: "host-qmp-quit" });
      await client.ended;
    } finally {
      qemu.kill("SIGKILL");
      await exited;
    }
  });
});

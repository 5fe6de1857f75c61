import { readFileSync } from "node:fs";
import { mkdir, stat, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { once } from "node:events";
import { execFileSync } from "node:child_process";
import { expect } from "chai";
import { z } from "zod";
import { DeviceError, ReplError, StateError } from "../../../src/errors.js";
import type { TlsAcceptor } from "../../../src/net/tls/acceptor.js";
import { QmpClient } from "../../../src/qmp/client.js";
import { qmpCommand } from "../../../src/qmp/command.js";
import { MAXIMUM_CLIENTS, QmpServer } from "../../../src/qmp/server.js";
import { memoryLogger } from "../../tools/memory-logger.js";
import { keepalivePatienceOf, keepaliveSecondsOf, userTimeoutOf } from "../../tools/tcp-delay.js";
import { RawClient, startServer } from "./harness.js";
import type { Harness } from "./harness.js";

const nothing = z.strictObject({});

/** Resolves by hand. */
function gate(): { open: () => void; passed: Promise<void> } {
  let open = (): void => undefined;
  const passed = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { open, passed };
}

/** When the kernel will ask the peers of that local port for a sign of life, of each connection that has such a timer. */
function keepaliveSeconds(port: number): number[] {
  const local = `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const rows = readFileSync("/proc/net/tcp", "utf8").split("\n");
  return rows.flatMap((row) => {
    const [, address, , state, , timer = ""] = row.trim().split(/\s+/);
    const [kind, hundredths = ""] = timer.split(":");
    const isKeepalive = address === local && state === "01" && kind === "02";
    return isKeepalive ? [Math.ceil(parseInt(hundredths, 16) / 1000) * 10] : [];
  });
}

describe("qmp/server", () => {
  let harness: Harness;
  let order: string[];
  let hold: ReturnType<typeof gate>;
  let started: ReturnType<typeof gate>;

  beforeEach(async () => {
    order = [];
    hold = gate();
    started = gate();
    const thrown: Record<string, unknown> = {
      state: new StateError("not-running", "Block replication is not running"),
      device: new DeviceError("ENOSPC", "the disk is full"),
      bug: new TypeError("x is not a function"),
    };
    harness = await startServer([
      qmpCommand({
        name: "echo",
        arguments: z.strictObject({ text: z.string() }),
        run: ({ text }) => {
          order.push(text);
          return Promise.resolve({ text });
        },
      }),
      qmpCommand({
        name: "hold",
        arguments: nothing,
        run: async (_args, { clientId }) => {
          order.push(`hold by ${clientId}`);
          started.open();
          await hold.passed;
          order.push("held");
          return {};
        },
      }),
      qmpCommand({
        name: "fail",
        arguments: z.strictObject({ how: z.string() }),
        // eslint would have an Error literal; what is thrown is the test's choice.
        run: ({ how }) => Promise.reject(thrown[how] as Error),
      }),
      qmpCommand({
        name: "flood",
        arguments: nothing,
        run: () => Promise.resolve({ text: "x".repeat(600_000) }),
      }),
    ]);
  });

  afterEach(async () => {
    hold.open();
    await harness.stop();
  });

  it("greets as QEMU does, with its own package", async () => {
    const client = new RawClient(harness.address);
    expect(await client.next()).to.deep.equal({
      QMP: {
        version: { qemu: { major: 7, minor: 2, micro: 0 }, package: "nbd-replication 1.2.3" },
        capabilities: [],
      },
    });
    client.socket.destroy();
  });

  it("executes nothing before the negotiation, and negotiates once", async () => {
    const client = new RawClient(harness.address);
    await client.next();
    const refused = await client.ask({ execute: "query-version", id: 7 });
    expect(refused).to.deep.equal({
      id: 7,
      error: {
        class: "CommandNotFound",
        desc: "Expecting capabilities negotiation with 'qmp_capabilities'",
        code: "command-not-found",
        kind: "failed",
      },
    });
    expect(
      await client.ask({ execute: "qmp_capabilities", arguments: { enable: ["oob"] } }),
    ).to.have.nested.property("error.desc", "capability 'oob' is not available");
    expect(await client.ask({ execute: "qmp_capabilities" })).to.deep.equal({ return: {} });
    expect(await client.ask({ execute: "qmp_capabilities" })).to.have.nested.property(
      "error.desc",
      "Capabilities negotiation is already complete, command ignored",
    );
    client.socket.destroy();
  });

  it("lists its commands", async () => {
    const client = await RawClient.ready(harness.address);
    const names = ["qmp_capabilities", "query-version", "query-commands", "echo", "hold", "fail", "flood"];
    expect(await client.ask({ execute: "query-commands" })).to.deep.equal({
      return: names.map((name) => ({ name })),
    });
    client.socket.destroy();
  });

  it("echoes any id", async () => {
    const client = await RawClient.ready(harness.address);
    const id = { a: [1, 2.5, null] };
    const answer = await client.ask({ execute: "echo", arguments: { text: "t" }, id });
    expect(answer).to.deep.equal({ return: { text: "t" }, id });
    client.socket.destroy();
  });

  it("echoes an id as it was written: one of 64 bits, too, also with an error", async () => {
    const client = await RawClient.ready(harness.address);
    const received: string[] = [];
    client.socket.on("data", (chunk: Buffer) => received.push(chunk.toString()));
    client.send(`{"execute": "echo", "arguments": {"text": "t"}, "id": 18446744073709551615}`);
    await client.next();
    client.send(`{'id': [9007199254740993,\n'"'], 'execute': 'nope'}`);
    await client.next();
    expect(received.join("").split("\r\n")).to.deep.equal([
      `{"return":{"text":"t"},"id":18446744073709551615}`,
      `{"error":{"class":"CommandNotFound","desc":"The command nope has not been found","code":"command-not-found","kind":"failed"},"id":[9007199254740993, "\\""]}`,
      "",
    ]);
    client.socket.destroy();
  });

  const malformed: readonly (readonly [text: string, desc: string])[] = [
    ['{"a":1}', "QMP input member 'a' is unexpected"],
    ["[1]", "QMP input must be a JSON object"],
    ["{}", "QMP input lacks member 'execute'"],
    ['{"execute":5}', "QMP input member 'execute' must be a string"],
    ['{"execute":"echo","arguments":[]}', "QMP input member 'arguments' must be an object"],
    ['{"execute":"nope"}', "The command nope has not been found"],
    ['{"execute":"echo"}', "Parameter 'text' is missing"],
    ["x\n", "JSON parse error, expecting an object, not 'x'"],
  ];
  for (const [text, desc] of malformed) {
    it(`answers ${text.trim()} with "${desc}" and goes on`, async () => {
      const client = await RawClient.ready(harness.address);
      client.send(text);
      expect(await client.next()).to.have.nested.property("error.desc", desc);
      expect(await client.ask({ execute: "echo", arguments: { text: "t" } })).to.deep.equal({
        return: { text: "t" },
      });
      client.socket.destroy();
    });
  }

  it("answers a ReplError with its message, code and kind", async () => {
    const client = await RawClient.ready(harness.address);
    expect(await client.ask({ execute: "fail", arguments: { how: "state" } })).to.deep.equal({
      error: {
        class: "GenericError",
        desc: "Block replication is not running",
        code: "not-running",
        kind: "state",
      },
    });
    expect(await client.ask({ execute: "fail", arguments: { how: "device" } })).to.deep.equal({
      error: { class: "GenericError", desc: "the disk is full", code: "ENOSPC", kind: "failed" },
    });
    client.socket.destroy();
  });

  it("answers a bug without its text, and logs it with its stack", async () => {
    const client = await RawClient.ready(harness.address);
    expect(await client.ask({ execute: "fail", arguments: { how: "bug" } })).to.have.nested.property(
      "error.desc",
      "internal error, see the log",
    );
    const line = harness.logged.find((entry) => entry["level"] === 50);
    expect(line).to.have.nested.property("err.stack").that.includes("TypeError: x is not a function");
    client.socket.destroy();
  });

  it("runs a client's commands in order and another client's meanwhile", async () => {
    const one = await RawClient.ready(harness.address);
    const two = await RawClient.ready(harness.address);
    one.send('{"execute":"hold"}{"execute":"echo","arguments":{"text":"behind"}}');
    await started.passed;
    await two.ask({ execute: "echo", arguments: { text: "meanwhile" } });
    hold.open();
    expect(await one.next()).to.deep.equal({ return: {} });
    expect(await one.next()).to.deep.equal({ return: { text: "behind" } });
    expect(order).to.deep.equal(["hold by 1", "meanwhile", "held", "behind"]);
    one.socket.destroy();
    two.socket.destroy();
  });

  it("answers a client that has shut its sending side, then closes", async () => {
    const client = new RawClient(harness.address);
    client.socket.end('{"execute":"qmp_capabilities"}\n{"execute":"echo","arguments":{"text":"t"}}\n');
    await client.next();
    expect(await client.next()).to.deep.equal({ return: {} });
    expect(await client.next()).to.deep.equal({ return: { text: "t" } });
    expect(await client.next()).to.equal(null);
    await client.closed;
  });

  it("answers what still runs for a client that has shut its sending side, then closes", async () => {
    const client = await RawClient.ready(harness.address);
    client.send('{"execute": "hold", "id": 1}\n{"execute": "echo", "arguments": {"text": "a"}, "id": 2}\n');
    await started.passed;
    const ended = new Promise((resolve) => client.socket.once("finish", resolve));
    client.socket.end();
    await ended;
    // So that the server has seen the end.
    await (await RawClient.ready(harness.address)).ask({ execute: "query-commands" });
    hold.open();
    expect(await client.next()).to.deep.equal({ return: {}, id: 1 });
    expect(await client.next()).to.deep.equal({ return: { text: "a" }, id: 2 });
    await client.closed;
  });

  it("sends events to those that have negotiated, with a timestamp", async () => {
    const ready = await RawClient.ready(harness.address);
    const silent = new RawClient(harness.address);
    await silent.next();
    harness.server.emit("STOP");
    harness.server.emit("BLOCK_JOB_READY", { device: "disk0" });
    const timestamp = { seconds: 1, microseconds: 500_250 };
    expect(await ready.next()).to.deep.equal({ timestamp, event: "STOP" });
    expect(await ready.next()).to.deep.equal({
      timestamp,
      event: "BLOCK_JOB_READY",
      data: { device: "disk0" },
    });
    expect(await silent.ask({ execute: "qmp_capabilities" })).to.deep.equal({ return: {} });
    ready.socket.destroy();
    silent.socket.destroy();
  });

  it("cuts a client that does not read, and serves the others", async () => {
    const deaf = await RawClient.ready(harness.address);
    const other = await RawClient.ready(harness.address);
    deaf.socket.pause();
    for (let i = 0; i < 4; i += 1) deaf.send('{"execute":"flood"}');
    while (harness.server.clientsOf(harness.address) > 1)
      await new Promise((resolve) => setImmediate(resolve));
    expect(await other.ask({ execute: "echo", arguments: { text: "t" } })).to.deep.equal({
      return: { text: "t" },
    });
    deaf.socket.destroy();
    other.socket.destroy();
  });

  it("closes the client that is one too many", async () => {
    const clients: RawClient[] = [];
    for (let i = 0; i < MAXIMUM_CLIENTS; i += 1) clients.push(await RawClient.ready(harness.address));
    const tooMany = new RawClient(harness.address);
    expect(await tooMany.next()).to.equal(null);
    expect(harness.server.clientsOf(harness.address)).to.equal(MAXIMUM_CLIENTS);
    for (const client of clients) client.socket.destroy();
  });

  it("has a place for a client on a unix socket when clients over TCP have taken all of theirs, and the other way round", async () => {
    const address = await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    for (const [full, other] of [
      [address, harness.address],
      [harness.address, address],
    ] as const) {
      const clients: RawClient[] = [];
      for (let i = 0; i < MAXIMUM_CLIENTS; i += 1) clients.push(await RawClient.ready(full));
      expect(await new RawClient(full).next()).to.equal(null);
      const client = await RawClient.ready(other);
      expect(await client.ask({ execute: "echo", arguments: { text: "t" } })).to.deep.equal({
        return: { text: "t" },
      });
      for (const { socket } of [...clients, client]) socket.destroy();
      while (harness.server.clientsOf(full) + harness.server.clientsOf(other) > 0)
        await new Promise((resolve) => setImmediate(resolve));
    }
  });

  it("asks clients over TCP for a sign of life: one that vanished does not keep its place", async () => {
    const address = await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    const client = await QmpClient.connect(address);
    const port = address.kind === "tcp" ? address.port : 0;
    expect(keepaliveSecondsOf(port)).to.deep.equal({ server: [30], client: [30] });
    await client.close();
  });

  it("gives up a client that vanished while an event was on its way to it as soon as one to which nothing was", async () => {
    const address = await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    const client = await QmpClient.connect(address);
    const port = address.kind === "tcp" ? address.port : 0;
    const seconds = [...keepaliveSecondsOf(port).server, ...keepalivePatienceOf(port).server];
    expect(seconds).to.deep.equal([30, 10]);
    expect(userTimeoutOf(port).server).to.deep.equal([40_000]);
    await client.close();
  });

  it("tells of ten clients that are too many, and of the number of the others when it ends", async () => {
    const clients: RawClient[] = [];
    for (let i = 0; i < MAXIMUM_CLIENTS; i += 1) clients.push(await RawClient.ready(harness.address));
    for (let i = 0; i < 25; i += 1) expect(await new RawClient(harness.address).next()).to.equal(null);
    for (const client of clients) client.socket.destroy();
    await harness.server.close();
    const warnings = harness.logged.filter(({ level }) => level === 40);
    expect(
      warnings.map(({ msg, code, clients: there, count }) => ({ msg, code, there, count })),
    ).to.deep.equal([
      ...Array.from({ length: 10 }, () => ({
        msg: "QMP client refused: too many, or closing",
        code: "too-many-clients",
        there: MAXIMUM_CLIENTS,
        count: undefined,
      })),
      { msg: "15 more of these within 10 s", code: "too-many-clients", there: undefined, count: 15 },
    ]);
  });

  it("answers the command that runs before it closes, and takes no more", async () => {
    const client = await RawClient.ready(harness.address);
    client.send('{"execute":"hold"}{"execute":"echo","arguments":{"text":"late"}}');
    await started.passed;
    const closed = harness.server.close();
    hold.open();
    await closed;
    expect(await client.next()).to.deep.equal({ return: {} });
    expect(await client.next()).to.equal(null);
    expect(order).to.deep.equal(["hold by 1", "held"]);
  });

  it("ends those that are in their TLS handshake when it closes", async () => {
    const shaking = gate();
    const tls = {
      secure: (): Promise<never> => {
        shaking.open();
        return new Promise(() => undefined);
      },
    } as unknown as TlsAcceptor;
    const server = new QmpServer({ commands: [], log: memoryLogger(), version: "1", tls });
    const client = new RawClient(await server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 }));
    await shaking.passed;
    const closed = server.close();
    expect(await client.next()).to.equal(null);
    client.socket.destroy();
    await closed;
    // Its deadline, of 10 s, would end it too.
  }).timeout(5000);

  describe("listening", () => {
    it("makes the unix socket accessible to its owner alone", async () => {
      expect((await stat(harness.address.path)).mode & 0o777).to.equal(0o600);
    });

    it("refuses a socket on which another server listens", async () => {
      const second = new QmpServer({ commands: [], log: memoryLogger(), version: "1" });
      const error: unknown = await second.listen(harness.address).catch((reason: unknown) => reason);
      expect(error).to.be.instanceOf(ReplError).with.property("code", "address-in-use");
      expect((error as Error).message).to.equal(
        `can't listen on unix:${harness.address.path}: another process listens there`,
      );
    });

    it("replaces the socket that a killed process left behind", async () => {
      const path = join(harness.directory, "stale.sock");
      const script = `require("net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 9))`;
      expect(() => execFileSync(process.execPath, ["-e", script])).to.throw();
      await harness.server.listen({ kind: "unix", path });
      const client = await RawClient.ready({ kind: "unix", path });
      client.socket.destroy();
    });

    it("leaves a file alone that is not a socket", async () => {
      const path = join(harness.directory, "precious");
      await writeFile(path, "data");
      const error: unknown = await harness.server
        .listen({ kind: "unix", path })
        .catch((reason: unknown) => reason);
      expect(error).to.be.instanceOf(ReplError).with.property("code", "address-in-use");
      expect((await stat(path)).size).to.equal(4);
    });

    it("names the directory that is missing", async () => {
      const path = join(harness.directory, "no", "qmp.sock");
      const error: unknown = await harness.server
        .listen({ kind: "unix", path })
        .catch((reason: unknown) => reason);
      expect(error).to.be.instanceOf(ReplError).with.property("code", "cannot-listen");
      expect((error as Error).message).to.include(path);
      await mkdir(join(harness.directory, "no"));
      await harness.server.listen({ kind: "unix", path });
    });

    it("tells the port that the kernel chose, whose clients are whose, and refuses one in use", async () => {
      const address = await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
      expect(harness.server.addresses).to.deep.equal([harness.address, address]);
      const client = await RawClient.ready(harness.address);
      expect([harness.address, address].map((each) => harness.server.clientsOf(each))).to.deep.equal([1, 0]);
      client.socket.destroy();
      const second = new QmpServer({ commands: [], log: memoryLogger(), version: "1" });
      const error: unknown = await second.listen(address).catch((reason: unknown) => reason);
      expect(error).to.be.instanceOf(ReplError).with.property("code", "address-in-use");
    });

    it("has the kernel look after 30 s of silence whether a client's host is still there", async () => {
      const { port } = (await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 })) as {
        port: number;
      };
      const socket = connect(port, "127.0.0.1");
      await once(socket, "data");
      expect(keepaliveSeconds(port)).to.deep.equal([30]);
      socket.destroy();
    });

    it("removes its socket when it closes", async () => {
      await harness.server.close();
      const server = createServer();
      server.listen(harness.address.path);
      await once(server, "listening");
      server.close();
      await once(server, "close");
    });
  });
});

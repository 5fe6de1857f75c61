/** When a replica that is connected is given up for its silence, on a clock that the test sets. */
import { expect } from "chai";

import type { Clock } from "../../../src/clock.js";
import { Deferred } from "../../../src/deferred.js";
import { LinkError, NegotiationError } from "../../../src/errors.js";
import type { PrimaryDisk } from "../../../src/replication/primary/disk.js";
import {
  ReplicaConnections,
  type ReplicaConnectionsEvents,
} from "../../../src/replication/primary/replica-connections.js";
import type { ReplicaControl } from "../../../src/replication/primary/replica-control.js";
import type { ReplicaDisk, ReplicaNetwork } from "../../../src/replication/primary/replica-network.js";
import { writerExport } from "../../../src/replication/protocol.js";
import { failureOf, isSettled, turns } from "../../tools/outcome.js";

const TIMEOUT_MS = 5000;
/** What is in flight takes many times as long as an answer may, all in all. */
const REQUESTS = 40;

class ManualClock implements Clock {
  #nowMs = 1000;
  readonly #timers: { readonly everyMs: number; nextMs: number; readonly call: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }

  after(): never {
    throw new Error("nobody needs this here");
  }

  every(everyMs: number, call: () => void): () => void {
    const timer = { everyMs, nextMs: this.#nowMs + everyMs, call };
    this.#timers.push(timer);
    return () => {
      timer.nextMs = Infinity;
    };
  }

  /** The process is stopped, and goes on with its timers. */
  stop(ms: number): void {
    this.#nowMs += ms;
    for (const timer of this.#timers) {
      timer.nextMs = this.#nowMs + timer.everyMs;
      timer.call();
    }
  }

  async pass(ms: number): Promise<void> {
    for (const endMs = this.#nowMs + ms; this.#nowMs < endMs; this.#nowMs += 100) {
      for (const timer of this.#timers) {
        if (timer.nextMs > this.#nowMs) continue;
        timer.nextMs += timer.everyMs;
        timer.call();
      }
    }
    await turns();
  }
}

describe("ReplicaConnections", () => {
  let clock: ManualClock;
  /** Sent, and not answered yet. */
  let pending: { readonly sentAtMs: number }[];
  let connections: ReplicaConnections;
  /** Whether the replica has something in memory alone. */
  let hasVolatile: boolean;
  /** What the dirty map hears of a flush, and the flush itself. */
  let flush: string[];
  let flushFails: boolean;
  let flushing: Promise<unknown>;

  beforeEach(async () => {
    clock = new ManualClock();
    pending = [];
    hasVolatile = false;
    flush = [];
    flushFails = false;
    flushing = Promise.resolve();
    const info = { sizeBytes: 4096, writable: true };
    const replica = {
      info,
      ended: new Promise(() => undefined),
      destroy: () => undefined,
      flush: () => {
        flush.push("flush");
        return flushFails ? Promise.reject(new Error("no")) : flushing;
      },
      close: () => Promise.resolve(),
      get oldestPending() {
        return pending[0] ?? null;
      },
    } as unknown as ReplicaDisk;
    const dirty = {
      get hasVolatile() {
        return hasVolatile;
      },
      isFlushing: false,
      beginFlush: () => flush.push("begins"),
      endFlush: (isDurable: boolean) => flush.push(isDurable ? "is durable" : "has failed"),
    };
    const disk = { name: "disk0", local: { info }, dirty } as unknown as PrimaryDisk;
    connections = await ReplicaConnections.open(
      {
        address: { kind: "unix", path: "nowhere" },
        control: null,
        disks: [disk],
        timeoutMs: TIMEOUT_MS,
        clock,
        network: { disk: () => Promise.resolve(replica) } as unknown as ReplicaNetwork,
      },
      {} as ReplicaConnectionsEvents,
    );
    connections.lost.catch(() => undefined);
    pending = Array.from({ length: REQUESTS }, () => ({ sentAtMs: clock.nowMs() }));
  });

  it("keep a replica that is slow: each answer comes in time, if long after its request was sent", async () => {
    while (pending.length > 0) {
      await clock.pass(TIMEOUT_MS / 2);
      pending.shift();
    }
    await clock.pass(10 * TIMEOUT_MS);
    expect(await isSettled(connections.lost)).to.equal(false);
  });

  it("give up a replica that is so slow that a request waits for 24 time-outs, though each answer comes in time", async () => {
    pending = Array.from({ length: 3 * REQUESTS }, () => ({ sentAtMs: clock.nowMs() }));
    const answer = async (count: number): Promise<void> => {
      for (let answered = 0; answered < count; answered++) {
        await clock.pass(TIMEOUT_MS / 2);
        pending.shift();
      }
    };
    await answer(47);
    expect(await isSettled(connections.lost)).to.equal(false);
    await answer(3);
    const reason: unknown = await connections.lost.catch((error: unknown) => error);
    expect(reason).to.have.property("message", "the replica has kept a request waiting for 120000 ms");
  });

  it("keep a replica whose answers are not read yet because this process was stopped, for longer than a request may ever wait", async () => {
    await clock.pass(TIMEOUT_MS / 2);
    clock.stop(30 * TIMEOUT_MS);
    await turns();
    expect(await isSettled(connections.lost)).to.equal(false);
    pending = pending.slice(-1);
    await clock.pass(TIMEOUT_MS / 2);
    expect(await isSettled(connections.lost)).to.equal(false);
    await clock.pass(TIMEOUT_MS);
    expect(await isSettled(connections.lost), "what is unanswered then is silence").to.equal(true);
  });

  for (const [outcome, fails] of [
    ["is durable", false],
    ["has failed", true],
  ] as const) {
    it(`take for durable what was acknowledged before a flush began, which ${outcome}, and nothing later`, async () => {
      hasVolatile = true;
      flushFails = fails;
      await connections.close();
      expect(flush).to.deep.equal(["begins", "flush", outcome]);
    });
  }

  it("begin no second flush while one is under way", async () => {
    hasVolatile = true;
    const done = new Deferred<undefined>();
    flushing = done.promise;
    pending = [];
    await clock.pass(10 * TIMEOUT_MS);
    expect(flush).to.deep.equal(["begins", "flush"]);
    done.resolve(undefined);
    await turns();
    hasVolatile = false;
    await clock.pass(10 * TIMEOUT_MS);
    expect(flush, "nothing is left to flush").to.deep.equal(["begins", "flush", "is durable"]);
  });

  it("give up a replica that answers nothing", async () => {
    await clock.pass(2 * TIMEOUT_MS);
    expect(await isSettled(connections.lost)).to.equal(true);
  });

  it("give up a replica that answers all but one request", async () => {
    for (let answered = 1; answered < REQUESTS; answered++) {
      await clock.pass(TIMEOUT_MS / 10);
      pending.splice(1, 1);
    }
    expect(await isSettled(connections.lost)).to.equal(true);
  });
});

describe("ReplicaConnections.open()", () => {
  const SIZE_BYTES = 4096;
  const SECRET = "7d1c";
  /** What was opened, and not closed or destroyed. */
  let open: string[];
  /** Resolves with what the control ends with. */
  let controlEnded: Deferred<Error | null>;
  let clock: ManualClock;
  let heartbeats: number;
  let heartbeat: () => Promise<void>;
  /** Of the replica of the last disk. */
  let info: { sizeBytes: number; writable: boolean };
  let connectDisk: (exportName: string) => Promise<void>;

  beforeEach(() => {
    open = [];
    controlEnded = new Deferred();
    clock = new ManualClock();
    heartbeats = 0;
    heartbeat = () => Promise.resolve();
    info = { sizeBytes: SIZE_BYTES, writable: true };
    connectDisk = () => Promise.resolve();
  });

  const gone = (name: string): void => {
    open = open.filter((each) => each !== name);
  };

  const control = (): ReplicaControl =>
    ({
      ended: controlEnded.promise,
      handshake: () => Promise.resolve({ memory: "first", writer: SECRET }),
      heartbeat: () => {
        heartbeats++;
        return heartbeat();
      },
      close: () => {
        gone("control");
        return Promise.resolve();
      },
    }) as unknown as ReplicaControl;

  const disk = async (exportName: string): Promise<ReplicaDisk> => {
    await connectDisk(exportName);
    open.push(exportName);
    return {
      info: exportName.startsWith("disk1") ? info : { sizeBytes: SIZE_BYTES, writable: true },
      ended: new Promise(() => undefined),
      oldestPending: null,
      destroy: () => {
        gone(exportName);
      },
      close: () => {
        gone(exportName);
        return Promise.resolve();
      },
    } as unknown as ReplicaDisk;
  };

  const connect = (hasControl = true): Promise<ReplicaConnections> =>
    ReplicaConnections.open(
      {
        address: { kind: "unix", path: "nowhere" },
        control: hasControl ? { kind: "unix", path: "nowhere" } : null,
        disks: ["disk0", "disk1"].map(
          (name) =>
            ({
              name,
              local: { info: { sizeBytes: SIZE_BYTES } },
              dirty: { hasVolatile: false },
            }) as unknown as PrimaryDisk,
        ),
        timeoutMs: TIMEOUT_MS,
        clock,
        network: {
          control: () => {
            open.push("control");
            return Promise.resolve(control());
          },
          disk: (_address: unknown, exportName: string) => disk(exportName),
        } as unknown as ReplicaNetwork,
      },
      { hello: () => ({}), welcomed: () => Promise.resolve() } as unknown as ReplicaConnectionsEvents,
    );

  it("has a connection to the control and one to each disk, all of which close() closes", async () => {
    const connections = await connect();
    connections.lost.catch(() => undefined);
    expect(open).to.deep.equal(["control", writerExport("disk0", SECRET), writerExport("disk1", SECRET)]);
    await connections.close();
    expect(open).to.deep.equal([]);
  });

  it("leaves nothing open when a disk can't be reached", async () => {
    connectDisk = (name) => (name.startsWith("disk1") ? Promise.reject(new Error("no")) : Promise.resolve());
    expect((await failureOf(connect())).message).to.equal("no");
    expect(open).to.deep.equal([]);
  });

  for (const [what, told, reason] of [
    ["smaller", { sizeBytes: SIZE_BYTES / 2, writable: true }, /has 2048 bytes, the primary disk 4096/],
    ["larger", { sizeBytes: SIZE_BYTES * 2, writable: true }, /has 8192 bytes, the primary disk 4096/],
    ["read-only", { sizeBytes: SIZE_BYTES, writable: false }, /is read-only/],
  ] as const) {
    it(`refuses a replica that is ${what}, and leaves nothing open`, async () => {
      info = told;
      expect((await failureOf(connect())).message).to.match(reason);
      expect(open).to.deep.equal([]);
    });
  }

  it("asks the control once more when the disks are connected: a node that was started anew knows no handshake", async () => {
    heartbeat = () => Promise.reject(new LinkError("connection-lost", "it was started anew"));
    expect((await failureOf(connect())).message).to.equal("it was started anew");
    expect(open).to.deep.equal([]);
  });

  it("does not tell the secret in an export's name", async () => {
    connectDisk = (name) => Promise.reject(new NegotiationError("export-unknown", `no export "${name}"`));
    const { message } = await failureOf(connect());
    expect(message).to.match(/^no export "disk0": it has to be the node of --replica-qmp/);
    expect((await failureOf(connect(false))).message, "without a handshake").to.equal('no export "disk0"');
  });

  it("gives all of them up when the control ends", async () => {
    const connections = await connect();
    controlEnded.resolve(new LinkError("connection-lost", "the node is gone"));
    expect((await failureOf(connections.lost)).message).to.equal("the node is gone");
    expect(open).to.deep.equal(["control"]);
  });

  it("gives all of them up when the control does not answer, and asks nothing any more", async () => {
    const connections = await connect();
    heartbeat = () => Promise.reject(new LinkError("timeout", "no answer"));
    await clock.pass(2000);
    expect((await failureOf(connections.lost)).message).to.equal("no answer");
    const before = heartbeats;
    await clock.pass(10_000);
    expect(heartbeats).to.equal(before);
  });
});

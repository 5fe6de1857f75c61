/** A primary's end of the simulated link: what src/nbd/client and src/qmp/client do with sockets. */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../../src/block/device.js";
import { Deferred } from "../../src/deferred.js";
import { DeviceError, LinkError, NegotiationError } from "../../src/errors.js";
import { type QmpErrorBody, QmpError } from "../../src/qmp/errors.js";
import { NodeControl, type QmpConnection } from "../../src/replication/primary/replica-control.js";
import type { ReplicaDisk, ReplicaNetwork } from "../../src/replication/primary/replica-network.js";
import type { DiskAnswer, DiskRequest, QmpEvent, QmpAnswer } from "./messages.js";
import type { End } from "./simulated-link.js";
import type { LifeClock } from "./virtual-time.js";

/** How to reach the other host's servers. */
export interface Dialler {
  control(timeoutMs: number): Promise<End>;
  /** @throws NegotiationError if the export is refused */
  disk(name: string, timeoutMs: number): Promise<{ readonly end: End; readonly info: DeviceInfo }>;
  /** What the primary's disks hold now, to go with a request for a checkpoint. */
  instant(): unknown;
}

/** The network of one life of a node. */
export function simulatedNetwork(dialler: Dialler, clock: LifeClock): ReplicaNetwork {
  return {
    control: async (_address, timeoutMs, events) => {
      const connection = new SimulatedQmpClient(await dialler.control(timeoutMs), dialler, clock);
      return new NodeControl(connection, timeoutMs, events);
    },
    commands: async (_address, timeoutMs) =>
      new SimulatedQmpClient(await dialler.control(timeoutMs), dialler, clock),
    disk: async (_address, name, timeoutMs) => {
      const { end, info } = await dialler.disk(name, timeoutMs);
      return new SimulatedReplica(end, info, clock);
    },
  };
}

type EventListener = Parameters<QmpConnection["onEvent"]>[0];

class SimulatedQmpClient implements QmpConnection {
  readonly #end: End;
  readonly #dialler: Dialler;
  readonly #clock: LifeClock;
  readonly #ended = new Deferred<Error | null>();
  readonly #pending = new Map<number, Deferred<unknown>>();
  readonly #listeners = new Set<EventListener>();
  #lastId = 0;

  constructor(end: End, dialler: Dialler, clock: LifeClock) {
    this.#end = end;
    this.#dialler = dialler;
    this.#clock = clock;
    end.onMessage = (message): void => {
      this.#receive(message as QmpAnswer | QmpEvent);
    };
    end.onClosed = (): void => {
      this.#finish(new LinkError("connection-lost", "the peer closed the connection"));
    };
  }

  get ended(): Promise<Error | null> {
    return this.#ended.promise;
  }

  execute(name: string, args: object = {}, { timeoutMs = 10_000 } = {}): Promise<unknown> {
    if (this.#end.isClosed)
      return Promise.reject(new LinkError("connection-lost", "the connection has ended"));
    const id = ++this.#lastId;
    const answered = new Deferred<unknown>();
    this.#pending.set(id, answered);
    const cancel = this.#clock.after(timeoutMs, () => {
      this.#pending.delete(id);
      answered.reject(new LinkError("timeout", `no answer to ${name} within ${timeoutMs} ms`));
    });
    this.#end.send({
      id,
      name,
      args,
      instant: name === "x-repl-checkpoint" ? this.#dialler.instant() : null,
    });
    return answered.promise.finally(cancel);
  }

  onEvent(listener: EventListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  close(): Promise<void> {
    this.#end.close();
    this.#finish(null);
    return Promise.resolve();
  }

  #receive(message: QmpAnswer | QmpEvent): void {
    if ("event" in message) {
      const { event, data } = message;
      for (const listener of this.#listeners)
        listener({ event, data, timestamp: { seconds: 0, microseconds: 0 } });
      return;
    }
    const answered = this.#pending.get(message.id);
    this.#pending.delete(message.id);
    if ("error" in message) answered?.reject(errorOf(message.error));
    else answered?.resolve(message.result);
  }

  #finish(reason: Error | null): void {
    this.#ended.resolve(reason);
    for (const answered of this.#pending.values()) {
      answered.reject(reason ?? new LinkError("connection-lost", "the connection was closed"));
    }
    this.#pending.clear();
  }
}

function errorOf({ class: qmpClass, code, desc, kind }: QmpErrorBody): QmpError {
  return new QmpError(qmpClass, code, desc, kind);
}

interface Pending {
  readonly sentAtMs: number;
  readonly answered: Deferred<DiskAnswer>;
}

class SimulatedReplica implements BlockDevice, ReplicaDisk {
  readonly info: DeviceInfo;
  readonly #end: End;
  readonly #clock: LifeClock;
  readonly #ended = new Deferred<Error | null>();
  readonly #pending = new Map<number, Pending>();
  #lastId = 0;
  #isClosing = false;

  constructor(end: End, info: DeviceInfo, clock: LifeClock) {
    this.info = info;
    this.#end = end;
    this.#clock = clock;
    end.onMessage = (message): void => {
      const answer = message as DiskAnswer;
      this.#pending.get(answer.id)?.answered.resolve(answer);
      this.#pending.delete(answer.id);
    };
    end.onClosed = (): void => {
      this.#finish(this.#isClosing ? null : new LinkError("closed", "the server closed the connection"));
    };
  }

  get ended(): Promise<Error | null> {
    return this.#ended.promise;
  }

  get inFlight(): number {
    return this.#pending.size;
  }

  get oldestPending(): Pending | null {
    const [oldest] = this.#pending.values();
    return oldest ?? null;
  }

  destroy(reason: Error): void {
    this.#end.close();
    this.#finish(reason);
  }

  async close(): Promise<void> {
    this.#isClosing = true;
    this.#end.send({ id: 0, kind: "disconnect", offset: 0, lengthBytes: 0, flags: 0 } satisfies DiskRequest);
    const cancel = this.#clock.after(1000, () => {
      this.destroy(new LinkError("closed", "the server did not close in time"));
    });
    await this.ended;
    cancel();
  }

  async read(offset: number, into: Buffer): Promise<void> {
    const { data } = await this.#request({ kind: "read", offset, lengthBytes: into.length, flags: 0 });
    data?.copy(into);
  }

  async write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    await this.#request({ kind: "write", offset, lengthBytes: from.length, flags, data: Buffer.from(from) });
  }

  async zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    await this.#request({ kind: "zero", offset, lengthBytes, flags });
  }

  async trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    await this.#request({ kind: "trim", offset, lengthBytes, flags });
  }

  async flush(): Promise<void> {
    await this.#request({ kind: "flush", offset: 0, lengthBytes: 0, flags: 0 });
  }

  async extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const { extents } = await this.#request({ kind: "extents", offset, lengthBytes, flags: 0, maxExtents });
    return extents ?? [];
  }

  async #request(request: Omit<DiskRequest, "id">): Promise<DiskAnswer> {
    if (this.#end.isClosed) throw new LinkError("closed", "the connection has ended");
    const id = ++this.#lastId;
    const answered = new Deferred<DiskAnswer>();
    this.#pending.set(id, { sentAtMs: this.#clock.nowMs(), answered });
    this.#end.send({ ...request, id } satisfies DiskRequest);
    const answer = await answered.promise;
    if (answer.errno !== undefined)
      throw new DeviceError(answer.errno, `the replica answered ${answer.errno}`);
    return answer;
  }

  #finish(reason: Error | null): void {
    this.#ended.resolve(reason);
    for (const { answered } of this.#pending.values()) {
      answered.reject(new LinkError("closed", "the connection has ended", { cause: reason }));
    }
    this.#pending.clear();
  }
}

export function refusedExport(reason: string): NegotiationError {
  return new NegotiationError("refused", reason);
}

/**
 * The connections to a replica, of one attempt: control and one for each disk. They live and are lost together.
 *
 * Invariant: `lost` is rejected once, with the first reason that anybody finds; from then on they are of no use.
 */
import type { Cancel, Clock } from "../../clock.js";
import { Deferred } from "../../deferred.js";
import { asError, LinkError, NegotiationError } from "../../errors.js";
import type { Endpoint } from "../../net/endpoint.js";
import { FlushPace } from "./flush-pace.js";
import type { PrimaryDisk } from "./disk.js";
import { type Hello, type Welcome, writerExport } from "../protocol.js";
import type { ReplicaControl, ReplicaControlEvents } from "./replica-control.js";
import type { ReplicaDisk, ReplicaNetwork } from "./replica-network.js";
import { Silence } from "./silence.js";

/** How often it is looked whether the replica is to make durable what it acknowledged. */
const FLUSH_INTERVAL_MS = 1000;
const HEARTBEAT_INTERVAL_MS = 1000;
/** Why a replica was given up: code of a LinkError. */
export const SILENT = "replica-timeout";
/** So many time-outs a request may wait at most, however steadily those before it are answered; DRBD: ko-count. */
const LONGEST_WAIT_TIMEOUTS = 24;
/** A stalled replica is noticed at most this part of the time-out late. */
const WATCH_PARTS = 10;

export interface ReplicaConnectionsOptions {
  /** Where the replica's NBD server is. */
  readonly address: Endpoint;
  /** Its control; null: a manager drives the checkpoints. */
  readonly control: Endpoint | null;
  readonly disks: readonly PrimaryDisk[];
  /** For each answer; also how long the oldest request may stay unanswered once it is that. */
  readonly timeoutMs: number;
  readonly clock: Clock;
  readonly network: ReplicaNetwork;
}

/** Told in the course of connecting, and later. */
export interface ReplicaConnectionsEvents extends ReplicaControlEvents {
  /** The control is connected: introduce this side. */
  hello(): Hello;
  welcomed(welcome: Welcome): Promise<void>;
}

export class ReplicaConnections {
  readonly control: ReplicaControl | null;
  /** In the order of the disks. */
  readonly replicas: readonly ReplicaDisk[];
  /** As Welcome.memory; null: there was no handshake. */
  readonly memory: string | null;
  readonly #options: ReplicaConnectionsOptions;
  readonly #lost = new Deferred<never>();
  readonly #timers: Cancel[];
  readonly #pace = new FlushPace();
  #isFlushing = false;

  private constructor(
    options: ReplicaConnectionsOptions,
    control: ReplicaControl | null,
    replicas: readonly ReplicaDisk[],
    memory: string | null,
  ) {
    this.#options = options;
    this.control = control;
    this.replicas = replicas;
    this.memory = memory;
    for (const { ended } of control === null ? replicas : [...replicas, control]) {
      void ended.then((reason) => {
        this.giveUp(reason ?? new LinkError("closed", "the link was closed"));
      });
    }
    this.#timers = this.#watch();
  }

  /** Connects and shakes hands. @throws LinkError, UnreachableError, NegotiationError, ProtocolError or QmpError */
  static async open(
    options: ReplicaConnectionsOptions,
    events: ReplicaConnectionsEvents,
  ): Promise<ReplicaConnections> {
    let control: ReplicaControl | null = null;
    let memory: string | null = null;
    let writer: string | null = null;
    const replicas: ReplicaDisk[] = [];
    try {
      if (options.control !== null) {
        control = await options.network.control(options.control, options.timeoutMs, events);
        // Before the disks: it cuts off older connections, whose late writes would overwrite newer ones.
        const welcome = await control.handshake(events.hello());
        await events.welcomed(welcome);
        ({ memory, writer } = welcome);
      }
      for (const disk of options.disks) replicas.push(await connectDisk(disk, writer, options));
      // A node that died after its answer and is up again knows nothing of the handshake, and takes the connections all the same.
      await control?.heartbeat();
      return new ReplicaConnections(options, control, replicas, memory);
    } catch (error) {
      await control?.close();
      for (const replica of replicas) replica.destroy(asError(error));
      throw error;
    }
  }

  /** Never resolves; rejects with the reason when the connections are lost. */
  get lost(): Promise<never> {
    return this.#lost.promise;
  }

  /** Drops the connections: everything on its way fails. */
  giveUp(reason: Error): void {
    this.#lost.reject(reason);
    for (const cancel of this.#timers) cancel();
    for (const replica of this.replicas) replica.destroy(reason);
  }

  /** Has the replica make everything durable and takes leave. Bounded by the time-out. */
  async close(): Promise<void> {
    // What is durable there need not be sent again when the same replica comes back.
    await Promise.allSettled([this.#flush()]);
    await Promise.allSettled(this.replicas.map((replica) => replica.close()));
    await this.control?.close();
    this.giveUp(new LinkError("closed", "the link was closed"));
  }

  /** Notices a replica that is silent, and has it make durable what it acknowledged. */
  #watch(): Cancel[] {
    const { timeoutMs, clock } = this.#options;
    const giveUp = (error: unknown): void => {
      this.giveUp(asError(error));
    };
    const intervalMs = timeoutMs / WATCH_PARTS;
    const watched = this.replicas.map((replica) => ({ replica, silence: new Silence(intervalMs) }));
    return [
      clock.every(intervalMs, () => {
        const nowMs = clock.nowMs();
        const longestMs = LONGEST_WAIT_TIMEOUTS * timeoutMs;
        for (const { replica, silence } of watched) {
          const oldest = replica.oldestPending;
          if (silence.look(oldest, nowMs) >= timeoutMs)
            giveUp(new LinkError(SILENT, `the replica has not answered for ${timeoutMs} ms`));
          else if (oldest !== null && silence.ranMs(oldest.sentAtMs, nowMs) >= longestMs)
            giveUp(new LinkError(SILENT, `the replica has kept a request waiting for ${longestMs} ms`));
        }
      }),
      clock.every(FLUSH_INTERVAL_MS, () => {
        this.#flushDue().catch(giveUp);
      }),
      clock.every(HEARTBEAT_INTERVAL_MS, () => {
        this.control?.heartbeat().catch(giveUp);
      }),
    ];
  }

  async #flushDue(): Promise<void> {
    if (this.#isFlushing) return;
    const { clock, disks } = this.#options;
    const begunMs = clock.nowMs();
    const due = this.#pace.due(
      begunMs,
      disks.map(({ dirty }) => dirty),
    );
    this.#isFlushing = true;
    try {
      await this.#flush((index) => due.has(index));
    } finally {
      this.#isFlushing = false;
      this.#pace.flushed(begunMs, clock.nowMs());
    }
  }

  async #flush(isDue: (index: number) => boolean = () => true): Promise<void> {
    for (const [index, { dirty }] of this.#options.disks.entries()) {
      const replica = this.replicas[index];
      if (replica === undefined || !isDue(index) || !dirty.hasVolatile || dirty.isFlushing) continue;
      dirty.beginFlush();
      let isDurable = false;
      try {
        await replica.flush();
        isDurable = true;
      } finally {
        dirty.endFlush(isDurable);
      }
    }
  }
}

async function connectDisk(
  disk: PrimaryDisk,
  writer: string | null,
  { address, timeoutMs, network }: ReplicaConnectionsOptions,
): Promise<ReplicaDisk> {
  const exportName = writer === null ? disk.name : writerExport(disk.name, writer);
  const replica = await network.disk(address, exportName, timeoutMs).catch((error: unknown) => {
    const reason = asError(error);
    // What goes to the log and the status is no place for the secret in it.
    reason.message = reason.message.replaceAll(exportName, disk.name);
    // There may be one by its plain name: of another node, which knows nothing of the handshake.
    if (writer !== null && reason instanceof NegotiationError && reason.code === "export-unknown") {
      throw new NegotiationError(
        reason.code,
        `${reason.message}: it has to be the node of --replica-qmp, and to export the disk`,
        { cause: reason },
      );
    }
    throw reason;
  });
  const { sizeBytes, writable } = replica.info;
  const expected = disk.local.info.sizeBytes;
  if (sizeBytes === expected && writable) return replica;
  await replica.close();
  const remedy =
    sizeBytes < expected
      ? "export one that is as large"
      : `start this node with --grow ${disk.name}=${sizeBytes}, or export one that is as large as its disk`;
  const what = writable
    ? `has ${sizeBytes} bytes, the primary disk ${expected}: ${remedy}`
    : "is read-only: export it writable";
  throw new NegotiationError("replica-unusable", `the replica of disk ${disk.name} ${what}`);
}

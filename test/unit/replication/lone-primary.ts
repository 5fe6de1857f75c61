/** A primary in virtual time, and the replica of its disk, which answers as the test wants. */
import { randomUUID } from "node:crypto";

import { pino } from "pino";

import { checked } from "../../../src/block/checked.js";
import { type BlockDevice, Flag } from "../../../src/block/device.js";
import { Deferred } from "../../../src/deferred.js";
import { QmpError } from "../../../src/qmp/errors.js";
import type { PrimaryOptions } from "../../../src/replication/primary/options.js";
import { Primary } from "../../../src/replication/primary/primary.js";
import type {
  ReplicaControl,
  ReplicaControlEvents,
} from "../../../src/replication/primary/replica-control.js";
import type { CommandConnection, ReplicaDisk } from "../../../src/replication/primary/replica-network.js";
import type { VerifyReport } from "../../../src/status.js";
import { LifeClock, VirtualTime } from "../../simulation/virtual-time.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";

export const MEBIBYTE = 1024 * 1024;
const SIZE_BYTES = 8 * MEBIBYTE;

interface LonePrimaryOptions {
  /** False: a manager drives the checkpoints. */
  readonly hasControl?: boolean;
  /** Of the primary; default: memsync, and guests that wait for a slower replica. */
  readonly settings?: Pick<Partial<PrimaryOptions>, "ackMode" | "onCongestion" | "asyncBytes">;
}

export class LonePrimary {
  readonly time = new VirtualTime();
  readonly medium = new MemoryDevice(SIZE_BYTES);
  readonly copy = new MemoryDevice(SIZE_BYTES);
  readonly ours = new FailingDevice(this.medium);
  readonly theirs = new FailingDevice(this.copy);
  /** Names the replica's memory. */
  memory = "first";
  /** Of the digests. */
  commands: CommandConnection = commandsOf(() =>
    Promise.reject(new QmpError("GenericError", "x", "it tells no digests")),
  );
  /** Why the replica can't be reached; null: it can. */
  unreachable: Error | null = null;
  /** What the replica answers a checkpoint. */
  answerCheckpoint: (epoch: number) => Promise<void> = () => Promise.resolve();
  /** The replica's epoch, as its handshake tells. */
  epoch = 1;
  /** Resolves before a connection is made. */
  connecting: Promise<void> = Promise.resolve();
  /** When the primary tried to connect. */
  readonly attemptsMs: number[] = [];
  /** Whether the replica, as its handshake tells, can be asked for digests. */
  hasDigests = true;
  /** Connections to the replica's control that are open. */
  openControls = 0;
  /** What the last of them is told. */
  #events: ReplicaControlEvents | null = null;
  readonly #clock = new LifeClock(this.time);
  #replicating = new Deferred<undefined>();
  #verified = new Deferred<VerifyReport>();
  #primary: Primary | null = null;

  private constructor() {
    /* See open(). */
  }

  /** Everything is on both sides. */
  static async open({ hasControl = true, settings = {} }: LonePrimaryOptions = {}): Promise<LonePrimary> {
    const lone = new LonePrimary();
    const { time, ours } = lone;
    const primary = await Primary.open({
      directory: new MemoryStateDirectory(),
      disks: [{ name: "disk0", path: "memory:0", device: checked(ours) }],
      ackMode: "memsync",
      onCongestion: "block",
      onReplicaError: "continue",
      replicaTimeoutMs: 5000,
      resyncBytesPerSecond: 0,
      checkpointIntervalMs: 0,
      ...settings,
      log: pino({ level: "silent" }),
      clock: lone.#clock,
      network: {
        control: (_endpoint, _timeoutMs, events) => lone.#connectControl(events),
        commands: () => Promise.resolve(lone.commands),
        disk: () => lone.#connectDisk(hasControl),
      },
      events: {
        stateChanged: () => {
          if (primary.link?.state === "replicating") lone.#replicating.resolve(undefined);
        },
        jobEnded: () => undefined,
        verifyEnded: (_verify, report) => {
          lone.#verified.resolve(report);
        },
      },
    });
    lone.#primary = primary;
    await time.until(lone.guest.write(0, Buffer.alloc(SIZE_BYTES, 0x11), Flag.None));
    const [address, control] = [
      { kind: "unix", path: "disk" },
      { kind: "unix", path: "control" },
    ] as const;
    await time.until(
      primary.attach({ address, control: hasControl ? control : null, uri: "in this process" }),
    );
    await lone.replicates();
    return lone;
  }

  get primary(): Primary {
    if (this.#primary === null) throw new Error("the primary does not run");
    return this.#primary;
  }

  get guest(): BlockDevice {
    const [disk] = this.primary.disks;
    if (disk === undefined) throw new Error("there is no disk");
    return disk.guestExport;
  }

  /** Lets time pass until the primary replicates once more than it was waited for. */
  async replicates(): Promise<void> {
    await this.time.until(this.#replicating.promise);
    this.#replicating = new Deferred();
  }

  /** Lets time pass until a verify has ended that was not waited for yet. */
  async verified(): Promise<VerifyReport> {
    const report = await this.time.until(this.#verified.promise);
    this.#verified = new Deferred();
    return report;
  }

  /** What the replica's control tells by itself. */
  get told(): ReplicaControlEvents {
    if (this.#events === null) throw new Error("there was no connection");
    return this.#events;
  }

  async #attempt(): Promise<void> {
    this.attemptsMs.push(this.time.nowMs);
    await this.connecting;
    if (this.unreachable !== null) throw this.unreachable;
  }

  async #connectControl(events: ReplicaControlEvents): Promise<ReplicaControl> {
    await this.#attempt();
    this.#events = events;
    this.openControls++;
    return {
      ended: new Promise<never>(() => undefined),
      hasDigests: this.hasDigests,
      handshake: () =>
        Promise.resolve({
          known: true,
          tenure: randomUUID(),
          changed: {},
          memory: this.memory,
          writer: null,
          epoch: this.epoch,
          stage: "running" as const,
          version: "0",
        }),
      prepareCheckpoint: () => Promise.resolve(),
      checkpoint: (_session, epoch) => this.answerCheckpoint(epoch),
      takeOver: () => Promise.reject(new Error("nobody hands over")),
      heartbeat: () => Promise.resolve(),
      close: () => {
        this.openControls--;
        return Promise.resolve();
      },
    };
  }

  /** What is on its way fails when the connection is destroyed. */
  async #connectDisk(hasControl: boolean): Promise<ReplicaDisk> {
    if (!hasControl) await this.#attempt();
    const disk = this.theirs;
    const ended = new Deferred<Error | null>();
    const pending = new Set<{ readonly sentAtMs: number }>();
    const ask = async <T>(answer: Promise<T>): Promise<T> => {
      const request = { sentAtMs: this.time.nowMs };
      pending.add(request);
      const lost = ended.promise.then((reason) => Promise.reject(reason ?? new Error("closed")));
      return Promise.race([answer, lost]).finally(() => pending.delete(request));
    };
    return {
      info: disk.info,
      ended: ended.promise,
      get inFlight() {
        return pending.size;
      },
      get oldestPending() {
        const [oldest] = pending;
        return oldest ?? null;
      },
      destroy: (reason) => {
        ended.resolve(reason);
      },
      read: (offset, into) => ask(disk.read(offset, into)),
      // The content is the caller's again when the request has failed, though it is still on its way here.
      write: (offset, from, flags) => ask(disk.write(offset, Buffer.from(from), flags)),
      zero: (offset, lengthBytes, flags) => ask(disk.zero(offset, lengthBytes, flags)),
      trim: (offset, lengthBytes, flags) => ask(disk.trim(offset, lengthBytes, flags)),
      flush: () => ask(disk.flush()),
      extents: (offset, lengthBytes, maxExtents) => ask(disk.extents(offset, lengthBytes, maxExtents)),
      close: () => {
        ended.resolve(null);
        return Promise.resolve();
      },
    };
  }
}

export function commandsOf(execute: CommandConnection["execute"]): CommandConnection {
  return { execute, close: () => Promise.resolve() };
}

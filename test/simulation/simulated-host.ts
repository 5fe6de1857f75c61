/**
 * One of the two hosts: its storage, which outlives the node, and the life of the node that runs on it, as a primary or a
 * secondary, until it is stopped or crashes.
 */
import { pino } from "pino";

import { checked } from "../../src/block/checked.js";
import type { BlockDevice } from "../../src/block/device.js";
import { asError, DeviceError } from "../../src/errors.js";
import { Primary } from "../../src/replication/primary/primary.js";
import { Secondary } from "../../src/replication/secondary/secondary.js";
import type { UndoErrorPolicy } from "../../src/config/schema.js";
import type { AckMode, LinkState, ReplicaErrorPolicy } from "../../src/status.js";
import { MemoryStateDirectory } from "../tools/memory-state-directory.js";
import { Power, poweredDevice, poweredDirectory } from "../tools/power.js";
import type { Random } from "../tools/seed.js";
import { WriteBackDisk } from "../tools/write-back-disk.js";
import { type Dialler, simulatedNetwork } from "./simulated-network.js";
import type { End } from "./simulated-link.js";
import { type ServerEvents, SimulatedServer } from "./simulated-server.js";
import { type DiskFaults, Faults, Latency, SimulatedDisk } from "./simulated-storage.js";
import { LifeClock, type VirtualTime } from "./virtual-time.js";

/** How a node ends without a word: its process alone, or the host with it. */
export type Death = "killed" | "power lost";

/** For this start: whatever only this node has is given up, or only what the history allows. */
export type ComeBack = "discard" | "demote";

export interface HostOptions {
  readonly name: string;
  readonly sizes: readonly number[];
  readonly replicaTimeoutMs: number;
  readonly policies: Policies;
  readonly faults: FaultKinds;
}

/** What may fail: nothing; requests to disks and logs of before-images; flushes and the whole state directory too. */
export type FaultKinds = "none" | "requests" | "all";

/** What both nodes are started with. */
export interface Policies {
  readonly ackMode: AckMode;
  readonly onReplicaError: ReplicaErrorPolicy;
  readonly onUndoError: UndoErrorPolicy;
}

export interface HostEvents {
  readonly server: ServerEvents;
  readonly dialler: Dialler;
  /** A crash is over: nothing of the node is left. */
  died(death: Death): void;
  /** A flush of a disk failed: what was not durable may be lost. */
  flushFailed(): void;
  /** A change of the state directory failed. */
  stateFailed(): void;
  /** The link of the node that is a primary has changed. */
  linkChanged(state: LinkState): void;
}

/** Everything that ends with the node's process. */
export interface Life {
  readonly power: Power;
  readonly clock: LifeClock;
  readonly disks: readonly SimulatedDisk[];
  readonly primary: Primary | null;
  readonly secondary: Secondary | null;
  readonly server: SimulatedServer | null;
  readonly ends: Set<End>;
}

interface Parts {
  readonly power: Power;
  readonly clock: LifeClock;
  readonly disks: readonly SimulatedDisk[];
  readonly ends: Set<End>;
}

const UNDO_CHANGES: ReadonlySet<string> = new Set(["create", "write", "sync"]);
const UNLINKING: ReadonlySet<string> = new Set(["remove", "rename", "truncate"]);
const STATE_CHANGES: ReadonlySet<string> = new Set([...UNDO_CHANGES, ...UNLINKING, "replace"]);

export class SimulatedHost {
  readonly name: string;
  readonly media: readonly WriteBackDisk[];
  readonly state = new MemoryStateDirectory();
  readonly latencies: readonly Latency[];
  /** Of each disk, and of the logs of before-images. */
  readonly diskFaults: readonly DiskFaults[];
  readonly undoFaults = new Faults();
  /** Of whatever changes the state directory; a request is named by its kind and file. */
  readonly stateFaults = new Faults();
  /** Whether the host itself is without power. */
  isDown = false;
  events: HostEvents | null = null;
  readonly #options: HostOptions;
  readonly #time: VirtualTime;
  readonly #random: Random;
  readonly #stateLatency: Latency;
  /** Files that the log has told the operator to remove. */
  readonly #condemned = new Set<string>();
  readonly #log = pino(
    { level: "error" },
    {
      write: (line: string): void => {
        this.#logged(line);
      },
    },
  );
  #life: Life | null = null;
  #parts: Parts | null = null;
  #death: Death = "killed";
  #dying: Promise<void> = Promise.resolve();
  #failure: Error | null = null;

  constructor(options: HostOptions, time: VirtualTime, random: Random) {
    this.name = options.name;
    this.#options = options;
    this.#time = time;
    this.#random = random;
    this.media = options.sizes.map((sizeBytes) => new WriteBackDisk(sizeBytes));
    this.latencies = this.media.map(() => new Latency(time, random));
    this.diskFaults = this.media.map(() => ({ requests: new Faults(), flushes: new Faults() }));
    const latency = new Latency(time, random);
    this.#stateLatency = latency;
    this.state.intercept = async ({ kind, name }): Promise<void> => {
      if (kind === "close" || (options.faults !== "all" && UNLINKING.has(kind))) return;
      if ((await latency.pass()) !== "whole") throw new DeviceError("EIO", "the power went");
      if (UNDO_CHANGES.has(kind) && name.startsWith("hidden-")) this.undoFaults.take();
      if (STATE_CHANGES.has(kind)) {
        try {
          this.stateFaults.take(`${kind} ${name}`);
        } catch (error) {
          this.events?.stateFailed();
          throw error;
        }
      }
    };
    if (options.faults === "all") this.state.isDone = () => random.below(2) === 0;
  }

  /** How often its disks have failed. */
  get diskFailures(): number {
    return this.diskFaults.reduce((sum, { requests }) => sum + requests.taken, this.flushFailures);
  }

  /** How often a flush of them has. */
  get flushFailures(): number {
    return this.diskFaults.reduce((sum, { flushes }) => sum + flushes.taken, 0);
  }

  /** How often its storage has failed. */
  get failures(): number {
    return this.diskFailures + this.undoFaults.taken + this.stateFaults.taken;
  }

  /** Whether a flush has failed, so that none succeeds any more in this life. */
  get hasFlushFailed(): boolean {
    return this.#life?.disks.some((disk) => disk.hasFlushFailed) === true;
  }

  /** No request fails any more. */
  mend(): void {
    for (const { requests, flushes } of this.diskFaults) {
      requests.mend();
      flushes.mend();
    }
    this.undoFaults.mend();
    this.stateFaults.mend();
  }

  get life(): Life | null {
    return this.#life;
  }

  /** The node as a primary, whichever way it became one. */
  get primary(): Primary | null {
    const { primary = null, secondary = null } = this.#life ?? {};
    return primary ?? (secondary?.stage === "done" ? secondary.promoted : null);
  }

  get secondary(): Secondary | null {
    return this.#life?.secondary ?? null;
  }

  /** Why the node can't be started, if it can't. */
  get failure(): Error | null {
    return this.#failure;
  }

  /** What guests of this node see, if it has any. */
  guestDisk(index: number): BlockDevice | null {
    const life = this.#life;
    if (life === null) return null;
    if (life.primary !== null) return life.primary.disks[index]?.guestExport ?? null;
    return life.secondary?.disks[index]?.viewExport ?? null;
  }

  /** @returns whether it came up: it may crash on the way */
  async startPrimary(): Promise<boolean> {
    return this.#start(async (parts) => {
      const primary = await Primary.open({
        ...this.#storage(parts),
        ...this.#replication(parts.clock),
        log: this.#log,
      });
      return { ...parts, primary, secondary: null, server: null };
    });
  }

  async startSecondary(comeBack: ComeBack | null): Promise<boolean> {
    return this.#start(async (parts) => {
      const { events } = this;
      if (events === null) throw new Error("a host without events");
      let server: SimulatedServer | null = null;
      const secondary = await Secondary.open({
        ...this.#storage(parts),
        onUndoError: this.#options.policies.onUndoError,
        discardLocalChanges: comeBack === "discard",
        demote: comeBack === "demote",
        asPrimary: this.#replication(parts.clock),
        clock: parts.clock,
        log: this.#log,
        events: {
          disconnectWriters: () => server?.disconnectWriters() ?? Promise.resolve(),
          checkpointDurable: (epoch) => server?.checkpointDurable(epoch),
          checkpointFailed: (failed) => server?.checkpointFailed(failed),
          rollbackLost: () => undefined,
          stageChanged: () => undefined,
          commitEnded: () => undefined,
        },
      });
      server = new SimulatedServer(secondary, events.server);
      return { ...parts, primary: null, secondary, server };
    });
  }

  /** Ends the node as SIGTERM does. @returns whether it came so far */
  async stop(): Promise<boolean> {
    const life = this.#life;
    if (life === null) return false;
    const closed = (async (): Promise<boolean> => {
      await life.server?.close();
      await (life.primary ?? life.secondary)?.close();
      return true;
    })();
    const isClosed = await Promise.race([
      closed.catch((error: unknown) => {
        if (this.failures === 0) throw error;
        return null;
      }),
      life.power.failed.then(() => false),
    ]);
    if (isClosed === null) {
      // It exits all the same, with nothing on record.
      await this.die("killed");
      return false;
    }
    if (!isClosed) {
      await this.#dying;
      return false;
    }
    this.#life = null;
    this.#parts = null;
    life.clock.end();
    for (const end of life.ends) end.close();
    await life.power.cut();
    return true;
  }

  /** Lets so many more changes of disks and files through, then the node dies. */
  dieAfter(changes: number, death: Death): void {
    this.#death = death;
    this.#parts?.power.failAfter(changes);
  }

  /** The node is gone when this resolves. */
  async die(death: Death): Promise<void> {
    const parts = this.#parts;
    if (parts === null) return;
    this.#death = death;
    parts.power.failAfter(0);
    // Off at once, though no change comes.
    const cut = parts.power.cut();
    await this.#dying;
    await cut;
  }

  /** The node is gone for good, or lives on. */
  dead(): Promise<void> {
    return this.#parts?.power.isOn === true ? Promise.resolve() : this.#dying;
  }

  /** A connection of this life, and none of an earlier one, which never hears of it; both end together. */
  async dialled(dial: () => Promise<End>): Promise<End> {
    const parts = this.#parts;
    const end = await dial();
    if (parts === null || parts !== this.#parts) {
      end.close();
      return new Promise(() => undefined);
    }
    parts.ends.add(end);
    return end;
  }

  async #start(open: (parts: Parts) => Promise<Life>): Promise<boolean> {
    for (const name of this.#condemned) this.state.discard(name);
    this.#condemned.clear();
    const power = new Power();
    this.isDown = false;
    const parts: Parts = {
      power,
      clock: new LifeClock(this.#time),
      disks: this.media.map(
        (medium, index) =>
          new SimulatedDisk(medium, this.#latencyOf(index), this.#faultsOf(index), this.#random, () => {
            this.events?.flushFailed();
          }),
      ),
      ends: new Set(),
    };
    this.#parts = parts;
    this.#dying = power.failed.then(() => this.#end(parts));
    const opened = open(parts).then(
      (life) => {
        if (power.isOn) this.#life = life;
        return power.isOn;
      },
      (error: unknown) => {
        if (power.isOn) this.#failure = asError(error);
        return false;
      },
    );
    const isUp = await Promise.race([opened, this.#dying.then(() => false)]);
    if (this.#failure !== null) throw new Error(`${this.name} can't start: ${this.#failure.message}`);
    return isUp;
  }

  async #end(parts: Parts): Promise<void> {
    // A stop() that came to its end cuts the power too.
    if (this.#parts !== parts) return;
    const death = this.#death;
    const losesPower = death === "power lost";
    this.#life = null;
    this.#parts = null;
    this.isDown = losesPower;
    parts.clock.end();
    for (const end of parts.ends) {
      if (losesPower) end.vanish();
      else end.close(this.#random.below(2) === 0);
    }
    this.#stateLatency.crash(losesPower);
    for (const latency of this.latencies) latency.crash(losesPower);
    await parts.power.cut();
    // As openFileDevice() does at the next start, of a node that did not end in order.
    for (const medium of this.media) medium.evict();
    if (losesPower) {
      this.state.crash(() => this.#random.below(2) === 0);
      for (const medium of this.media) medium.losePower(this.#random);
    }
    this.events?.died(death);
  }

  #logged(line: string): void {
    const name = /: remove \S+\/(\S+) before the next start/.exec(
      (JSON.parse(line) as { msg: string }).msg,
    )?.[1];
    if (name !== undefined) this.#condemned.add(name);
  }

  #latencyOf(index: number): Latency {
    const latency = this.latencies[index];
    if (latency === undefined) throw new RangeError(`no disk ${index}`);
    return latency;
  }

  #faultsOf(index: number): DiskFaults {
    const faults = this.diskFaults[index];
    if (faults === undefined) throw new RangeError(`no disk ${index}`);
    return faults;
  }

  #storage({ power, disks }: Parts): Pick<Parameters<typeof Primary.open>[0], "directory" | "disks"> {
    return {
      directory: poweredDirectory(this.state, power),
      disks: disks.map((disk, index) => ({
        name: `disk${index}`,
        path: `${this.name}:${index}`,
        device: checked(poweredDevice(disk, power)),
      })),
    };
  }

  #replication(clock: LifeClock): Omit<Parameters<typeof Primary.open>[0], "directory" | "disks" | "log"> {
    const { events } = this;
    if (events === null) throw new Error("a host without events");
    return {
      ackMode: this.#options.policies.ackMode,
      onCongestion: "block",
      onReplicaError: this.#options.policies.onReplicaError,
      replicaTimeoutMs: this.#options.replicaTimeoutMs,
      resyncBytesPerSecond: 0,
      checkpointIntervalMs: 0,
      clock,
      network: simulatedNetwork(events.dialler, clock),
      events: {
        stateChanged: (state) => {
          events.linkChanged(state);
        },
        jobEnded: () => undefined,
        verifyEnded: () => undefined,
      },
    };
  }
}

/**
 * The guest's disk on the primary: reads come from the primary disk alone, changes go to it and to the replica.
 * (QEMU: quorum with read-pattern=fifo and vote-threshold=1 over the disk and the replication filter.)
 *
 * Invariants:
 * - Changes that overlap are applied on both sides in their order of arrival: the two sides can't drift apart.
 * - An error of the primary disk always reaches the guest; one of the replica never does.
 * - Before a change is acknowledged, the replica has acknowledged it, or the dirty map has it as missed; in ack mode
 *   `async` that holds before the next drain() resolves.
 */
import { AskAgainError, errnoOf } from "../errors.js";
import type { AckMode } from "../status.js";
import { withBuffer } from "./buffer-pool.js";
import type { BlockDevice, DeviceInfo, Extent, Flags } from "./device.js";
import { Flag } from "./device.js";
import type { DirtyMap } from "./dirty-map.js";
import type { MemoryBudget } from "./memory-budget.js";
import { type RangeHold, RangeLock } from "./range-lock.js";
import { settleAll } from "./settle-all.js";

export interface MirrorOptions {
  readonly ackMode: AckMode;
  readonly dirty: DirtyMap;
  /** Memory for changes acknowledged in ack mode `async` that the replica has not acknowledged yet. */
  readonly memory: MemoryBudget;
  /** Ack mode `async`: the memory is used up, and the guest is about to wait for the replica. */
  readonly onCongested: () => void;
  /** Whether the replica takes changes now. */
  readonly isReachable: () => boolean;
  /** A change is made while there is no replica; it is acknowledged when this has resolved. */
  readonly onAlone: () => Promise<void>;
}

/** One kind of change, ready to be applied to either side. */
type Apply = (device: BlockDevice, flags: Flags) => Promise<void>;

interface Change {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly flags: Flags;
  readonly local: Apply;
  readonly replica: Apply;
  /** What it has taken from the memory budget. */
  readonly heldBytes: number;
}

type Turn = RangeHold | Promise<RangeHold>;

export class Mirror implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #local: BlockDevice;
  readonly #options: MirrorOptions;
  readonly #localLocks = new RangeLock();
  readonly #replicaLocks = new RangeLock();
  #requests = 0;
  #forwarding = 0;
  #onDrained: (() => void)[] = [];
  #replica: BlockDevice | null = null;
  #isClosed = false;

  constructor(local: BlockDevice, options: MirrorOptions) {
    this.info = local.info;
    this.#local = local;
    this.#options = options;
  }

  /** Requests that the guest has made so far; background work tells by it whether the guest is active. */
  get requests(): number {
    return this.#requests;
  }

  /** Changes on their way to the replica. */
  get inFlight(): number {
    return this.#forwarding;
  }

  /** Puts a replication filter beside the primary disk, or takes it away (QEMU: x-blockdev-change). */
  setReplica(replica: BlockDevice | null): void {
    this.#replica = replica;
  }

  /** Refuses every later request of the guest: another node serves the disk now. */
  handOver(): void {
    this.#isClosed = true;
  }

  /** Runs `action` while no change to the range is under way on either side, nor begins. */
  async exclusively<T>(offset: number, lengthBytes: number, action: () => Promise<T>): Promise<T> {
    const local = this.#localLocks.lock(offset, offset + lengthBytes, "exclusive");
    const replica = this.#replicaLocks.lock(offset, offset + lengthBytes, "exclusive");
    const localHold = await local;
    const replicaHold = await replica;
    try {
      return await action();
    } finally {
      replicaHold.release();
      localHold.release();
    }
  }

  /** Sends the replica once more what the primary disk holds there, as a write that changes nothing here. */
  resend(offset: number, lengthBytes: number): Promise<void> {
    return withBuffer(lengthBytes, (content) =>
      this.#changeLocalFirst({
        offset,
        lengthBytes,
        flags: Flag.None,
        local: (device) => device.read(offset, content),
        replica: (device, flags) => device.write(offset, content, flags),
        heldBytes: 0,
      }),
    );
  }

  /** Resolves when the replica has answered every change that is under way, or was given up. */
  async drain(): Promise<void> {
    while (this.#forwarding > 0) await new Promise<void>((resolve) => this.#onDrained.push(resolve));
  }

  read(offset: number, into: Buffer): Promise<void> {
    this.#requests++;
    return this.#isClosed ? refuse() : this.#local.read(offset, into);
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    this.#requests++;
    const apply: Apply = (device, deviceFlags) => device.write(offset, from, deviceFlags);
    if (this.#options.ackMode !== "async" || this.#replica === null) {
      return this.#change({
        offset,
        lengthBytes: from.length,
        flags,
        local: apply,
        replica: apply,
        heldBytes: 0,
      });
    }
    return this.#writeAsync(offset, from, flags, apply);
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    this.#requests++;
    const apply: Apply = (device, deviceFlags) => device.zero(offset, lengthBytes, deviceFlags);
    const change = { offset, lengthBytes, flags, local: apply, replica: apply, heldBytes: 0 };
    return (flags & Flag.FastZero) === 0 ? this.#change(change) : this.#changeLocalFirst(change);
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    // What a trimmed block reads as is each disk's own affair; zeroes are the same on both.
    return this.info.zero === "native" ? this.zero(offset, lengthBytes, flags & Flag.Fua) : Promise.resolve();
  }

  flush(): Promise<void> {
    const { ackMode } = this.#options;
    if (ackMode !== "sync" || this.#replica === null) return this.#local.flush();
    return settleAll([this.#local.flush(), this.#replica.flush()]);
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#local.extents(offset, lengthBytes, maxExtents);
  }

  close(): Promise<void> {
    return this.#local.close();
  }

  /** The guest's buffer is its own again after the acknowledgement, so the replica gets a copy, within the budget. */
  async #writeAsync(offset: number, from: Buffer, flags: Flags, local: Apply): Promise<void> {
    const lengthBytes = from.length;
    const { memory, onCongested } = this.#options;
    if (!memory.tryTake(lengthBytes)) {
      if (memory.wouldExceed(lengthBytes)) onCongested();
      await memory.take(lengthBytes);
    }
    if (this.#isClosed) {
      memory.give(lengthBytes);
      return refuse();
    }
    const copy = Buffer.from(from);
    const replica: Apply = (device, deviceFlags) => device.write(offset, copy, deviceFlags);
    await this.#change({ offset, lengthBytes, flags, local, replica, heldBytes: lengthBytes });
  }

  #change(change: Change): Promise<void> {
    if (this.#isClosed) return refuse();
    const { offset, lengthBytes } = change;
    const { dirty } = this.#options;
    const ready = dirty.prepare(offset, lengthBytes);
    // Both turns are taken before anything is awaited: they are what keeps the order of arrival.
    const localTurn = this.#localLocks.take(offset, offset + lengthBytes, "exclusive");
    const forwarded = this.#forward(change, ready);
    const applied = this.#applyLocally(change, localTurn, ready);
    const settled = this.#settle(change, applied, forwarded);
    // What no replica gets is acknowledged only after that is on record, in ack mode `async` too.
    const isAsync =
      this.#options.ackMode === "async" && this.#replica !== null && this.#options.isReachable();
    if (!isAsync) return settled;
    // It can only reject with the error of `applied`, which the guest gets.
    settled.catch(() => undefined);
    return applied;
  }

  /** Both sides are done with it, whatever became of it; rejects with the error of the primary disk. */
  async #settle(change: Change, applied: Promise<void>, forwarded: Promise<void>): Promise<void> {
    try {
      await applied;
    } finally {
      await forwarded;
      this.#options.dirty.done(change.offset, change.lengthBytes);
    }
  }

  /** A fast zero may be refused, and then must not have been forwarded. */
  async #changeLocalFirst(change: Change): Promise<void> {
    if (this.#isClosed) return refuse();
    const { offset, lengthBytes } = change;
    const { dirty } = this.#options;
    await dirty.prepare(offset, lengthBytes);
    try {
      await this.exclusively(offset, lengthBytes, async () => {
        await change.local(this.#local, change.flags).catch((error: unknown) => {
          // Only a refusal is sure to have changed nothing.
          if (errnoOf(error) !== "ENOTSUP") dirty.missed(offset, lengthBytes);
          throw error;
        });
        await this.#send({ ...change, flags: change.flags & ~Flag.FastZero });
      });
    } finally {
      dirty.done(offset, lengthBytes);
    }
  }

  /** @param ready the dirty map knows of the change; null: already */
  async #applyLocally(change: Change, turn: Turn, ready: Promise<void> | null): Promise<void> {
    const hold = turn instanceof Promise ? await turn : turn;
    try {
      if (ready !== null) await ready;
      await change.local(this.#local, change.flags);
    } catch (error) {
      // What the primary disk holds there now is unknown, what the replica holds is not it.
      this.#options.dirty.missed(change.offset, change.lengthBytes);
      throw error;
    } finally {
      hold.release();
    }
  }

  /** Never rejects: the filter swallows the replica's errors and reports them aside. */
  #forward(change: Change, ready: Promise<void> | null): Promise<void> {
    if (this.#replica === null) {
      this.#options.memory.give(change.heldBytes);
      // Bit before data: a crash may copy too much, never lose.
      this.#options.dirty.missed(change.offset, change.lengthBytes);
      return this.#options.onAlone();
    }
    const turn = this.#replicaLocks.take(change.offset, change.offset + change.lengthBytes, "exclusive");
    this.#forwarding++;
    return this.#forwardInTurn(change, turn, ready);
  }

  async #forwardInTurn(change: Change, turn: Turn, ready: Promise<void> | null): Promise<void> {
    const hold = turn instanceof Promise ? await turn : turn;
    try {
      if (ready !== null) await ready;
      await this.#send(change);
    } finally {
      hold.release();
      this.#options.memory.give(change.heldBytes);
      this.#forwarding--;
      if (this.#forwarding === 0) for (const drained of this.#onDrained.splice(0)) drained();
    }
  }

  async #send(change: Change): Promise<void> {
    const { dirty, ackMode } = this.#options;
    const replica = this.#replica;
    if (replica === null) {
      dirty.missed(change.offset, change.lengthBytes);
      await this.#options.onAlone();
      return;
    }
    const flags = change.flags & ~Flag.Fua;
    await change.replica(replica, ackMode === "sync" ? flags | Flag.Fua : flags);
    dirty.acknowledged(change.offset, change.lengthBytes);
  }
}

function refuse(): Promise<never> {
  return Promise.reject(new AskAgainError("another node has taken over: connect to that one"));
}

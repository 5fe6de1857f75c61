/**
 * The memory that the requests of all clients of a server share: payloads of writes, contents of reads, from the moment
 * a request is taken up until the kernel has its answer.
 *
 * A client always gets its guaranteed part, so that nobody can keep it from making small requests, one at a time. What goes
 * beyond that comes out of the pool, in the order of asking. While somebody waits, clients that hold more than their part and
 * move too few bytes are cut off: they are why memory is short.
 *
 * A client with one request at a time need not stand in that line, where hundreds may be ahead of it that won't give back what
 * they get. For such a client there is a reserve, of which it may have as many bytes as it has moved before; the less is left, the
 * more it must have moved for each byte, so that those who come and sit on what they get take little from those who have long been
 * at work. If it sits on them it is cut off too, and has to move as much again before it gets any.
 *
 * A read may have of the reserve also beside what its client holds: that may be changes that wait for a replica, for as long as it is
 * away (block/hold.ts), and reads are to go on meanwhile.
 *
 * Invariants:
 * - What clients hold beyond their guaranteed parts never exceeds the pool and the reserve.
 * - Somebody waits only while the first of those who wait doesn't fit.
 * - A client has one request in the reserve at most, and had none under way when it got it, unless it is a read.
 */
import { type Cancel, everyRunning, backgroundClock } from "../../clock.js";
import {
  MEMORY_GUARANTEED_BYTES,
  MEMORY_PRESSURE_MS,
  MEMORY_PROGRESS_BYTES,
  RESERVE_BYTES,
  RESERVE_PRICE,
  RESERVE_REQUEST_BYTES,
} from "./limits.js";

/** Who holds memory. */
export interface MemoryHolder {
  /** Bytes received and sent so far. */
  readonly movedBytes: () => number;
  /** It has to send the rest of a payload, or to read answers, before memory comes free. */
  readonly waitsForClient: () => boolean;
  readonly cutOff: () => void;
}

interface Waiting {
  readonly account: MemoryAccount;
  readonly bytes: number;
  readonly isRead: boolean;
  readonly onGranted: () => void;
}

export class MemoryPool {
  readonly #totalBytes: number;
  readonly #accounts = new Set<MemoryAccount>();
  readonly #waiting: Waiting[] = [];
  /** Beyond the guaranteed parts. */
  #heldBytes = 0;
  #reservedBytes = 0;
  #stopWatching: Cancel | null = null;

  constructor(totalBytes: number) {
    this.#totalBytes = totalBytes;
  }

  /** In all. */
  get heldBytes(): number {
    let sum = 0;
    for (const { heldBytes, reservedBytes } of this.#accounts) sum += heldBytes + reservedBytes;
    return sum;
  }

  open(holder: MemoryHolder): MemoryAccount {
    const account: MemoryAccount = new MemoryAccount(holder, {
      take: (bytes, onGranted, isRead) => this.#take({ account, bytes, isRead, onGranted }),
      give: (bytes) => {
        this.#give(account, bytes);
      },
      close: () => {
        this.#close(account);
      },
    });
    this.#accounts.add(account);
    return account;
  }

  #take(asked: Waiting): boolean {
    const { account, bytes } = asked;
    const isGuaranteed = account.heldBytes + bytes <= MEMORY_GUARANTEED_BYTES;
    if (isGuaranteed || (this.#waiting.length === 0 && this.#fits(account, bytes))) {
      this.#hold(account, bytes);
      return true;
    }
    if (this.#mayReserve(asked)) {
      this.#reserve(account, bytes);
      return true;
    }
    this.#waiting.push(asked);
    this.#stopWatching ??= this.#watch();
    return false;
  }

  #give(account: MemoryAccount, bytes: number): void {
    // If another request of the account has the same size, it makes no difference which of them counts as the reserved one.
    if (bytes === account.reservedBytes) this.#giveReserved(account);
    else this.#hold(account, -bytes);
    this.#grantWaiting();
  }

  #close(account: MemoryAccount): void {
    if (!this.#accounts.delete(account)) return;
    const left = this.#waiting.filter((each) => each.account !== account);
    this.#waiting.splice(0, this.#waiting.length, ...left);
    this.#giveReserved(account);
    this.#hold(account, -account.heldBytes);
    this.#grantWaiting();
  }

  #fits(account: MemoryAccount, bytes: number): boolean {
    const addedBytes = beyondGuaranteed(account.heldBytes + bytes) - beyondGuaranteed(account.heldBytes);
    return this.#heldBytes === 0 || this.#heldBytes + addedBytes <= this.#totalBytes;
  }

  /** @param bytes less than 0: it holds so much less */
  #hold(account: MemoryAccount, bytes: number): void {
    const before = beyondGuaranteed(account.heldBytes);
    account.heldBytes += bytes;
    this.#heldBytes += beyondGuaranteed(account.heldBytes) - before;
  }

  #mayReserve({ account: { holder, heldBytes, reservedBytes }, bytes, isRead }: Waiting): boolean {
    return (
      (heldBytes === 0 || isRead) &&
      reservedBytes === 0 &&
      bytes <= RESERVE_REQUEST_BYTES &&
      this.#reservedBytes + bytes <= RESERVE_BYTES &&
      bytes * RESERVE_PRICE ** (this.#reservedBytes / RESERVE_BYTES) <= holder.movedBytes()
    );
  }

  #reserve(account: MemoryAccount, bytes: number): void {
    account.reservedBytes = bytes;
    this.#reservedBytes += bytes;
  }

  #giveReserved(account: MemoryAccount): void {
    if (account.reservedBytes === 0) return;
    this.#reservedBytes -= account.reservedBytes;
    account.reservedBytes = 0;
    for (;;) {
      const index = this.#waiting.findIndex((each) => this.#mayReserve(each));
      const [next] = index < 0 ? [] : this.#waiting.splice(index, 1);
      if (next === undefined) return;
      this.#reserve(next.account, next.bytes);
      next.onGranted();
    }
  }

  #grantWaiting(): void {
    for (;;) {
      const next = this.#waiting[0];
      if (next === undefined || !this.#fits(next.account, next.bytes)) break;
      this.#waiting.shift();
      this.#hold(next.account, next.bytes);
      next.onGranted();
    }
    if (this.#waiting.length > 0 || this.#stopWatching === null) return;
    this.#stopWatching();
    this.#stopWatching = null;
  }

  #watch(): Cancel {
    for (const account of this.#accounts) account.lastMovedBytes = account.holder.movedBytes();
    // A client can't move anything while this process does not run.
    return everyRunning(backgroundClock, MEMORY_PRESSURE_MS, () => {
      for (const account of [...this.#accounts]) {
        const { holder, lastMovedBytes } = account;
        account.lastMovedBytes = holder.movedBytes();
        const isSlow = account.lastMovedBytes - lastMovedBytes < MEMORY_PROGRESS_BYTES;
        const holdsMore = account.heldBytes > MEMORY_GUARANTEED_BYTES || account.reservedBytes > 0;
        if (holdsMore && isSlow && holder.waitsForClient()) holder.cutOff();
      }
    });
  }
}

function beyondGuaranteed(bytes: number): number {
  return Math.max(0, bytes - MEMORY_GUARANTEED_BYTES);
}

interface PoolSide {
  readonly take: (bytes: number, onGranted: () => void, isRead: boolean) => boolean;
  readonly give: (bytes: number) => void;
  readonly close: () => void;
}

/** One client's. */
export class MemoryAccount {
  readonly holder: MemoryHolder;
  readonly #pool: PoolSide;
  /** Without what is in the reserve. */
  heldBytes = 0;
  reservedBytes = 0;
  /** When the pool last looked. */
  lastMovedBytes = 0;

  constructor(holder: MemoryHolder, pool: PoolSide) {
    this.holder = holder;
    this.#pool = pool;
  }

  /** Whether it is granted at once; if not, `onGranted` is called once it is. */
  take(bytes: number, onGranted: () => void, isRead = false): boolean {
    return this.#pool.take(bytes, onGranted, isRead);
  }

  give(bytes: number): void {
    this.#pool.give(bytes);
  }

  /** Gives back all, and waits for nothing any more. */
  close(): void {
    this.#pool.close();
  }
}

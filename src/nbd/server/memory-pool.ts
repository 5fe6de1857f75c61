/**
 * The memory that the requests of all clients of a server share: payloads of writes, contents of reads, from the moment
 * a request is taken up until the kernel has its answer.
 *
 * A client always gets its guaranteed part, so that nobody can keep it from small requests, one at a time. What is more
 * comes out of the pool, in the order of asking. While somebody waits, clients that hold more than their part and move
 * too little are cut off: memory is short, and it is they who hold it.
 *
 * Invariants:
 * - What is held never exceeds the pool by more than the guaranteed parts of the clients.
 * - Somebody waits only while the first of those who wait doesn't fit.
 */
import { MEMORY_GUARANTEED_BYTES, MEMORY_PRESSURE_MS, MEMORY_PROGRESS_BYTES } from "./limits.js";

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
  readonly onGranted: () => void;
}

export class MemoryPool {
  readonly #totalBytes: number;
  readonly #accounts = new Set<MemoryAccount>();
  readonly #waiting: Waiting[] = [];
  #heldBytes = 0;
  #pressureTimer: NodeJS.Timeout | null = null;

  constructor(totalBytes: number) {
    this.#totalBytes = totalBytes;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  open(holder: MemoryHolder): MemoryAccount {
    const account: MemoryAccount = new MemoryAccount(holder, {
      take: (bytes, onGranted) => this.#take(account, bytes, onGranted),
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

  #take(account: MemoryAccount, bytes: number, onGranted: () => void): boolean {
    const isGuaranteed = account.heldBytes + bytes <= MEMORY_GUARANTEED_BYTES;
    if (isGuaranteed || (this.#waiting.length === 0 && this.#fits(bytes))) {
      this.#grant(account, bytes);
      return true;
    }
    this.#waiting.push({ account, bytes, onGranted });
    this.#pressureTimer ??= this.#watch();
    return false;
  }

  #give(account: MemoryAccount, bytes: number): void {
    account.heldBytes -= bytes;
    this.#heldBytes -= bytes;
    this.#grantWaiting();
  }

  #close(account: MemoryAccount): void {
    if (!this.#accounts.delete(account)) return;
    const left = this.#waiting.filter((each) => each.account !== account);
    this.#waiting.splice(0, this.#waiting.length, ...left);
    this.#give(account, account.heldBytes);
  }

  #fits(bytes: number): boolean {
    return this.#heldBytes === 0 || this.#heldBytes + bytes <= this.#totalBytes;
  }

  #grant(account: MemoryAccount, bytes: number): void {
    account.heldBytes += bytes;
    this.#heldBytes += bytes;
  }

  #grantWaiting(): void {
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#grant(next.account, next.bytes);
      next.onGranted();
    }
    if (this.#waiting.length > 0 || this.#pressureTimer === null) return;
    clearInterval(this.#pressureTimer);
    this.#pressureTimer = null;
  }

  #watch(): NodeJS.Timeout {
    for (const account of this.#accounts) account.lastMovedBytes = account.holder.movedBytes();
    const timer = setInterval(() => {
      for (const account of [...this.#accounts]) {
        const { holder, lastMovedBytes } = account;
        account.lastMovedBytes = holder.movedBytes();
        const isSlow = account.lastMovedBytes - lastMovedBytes < MEMORY_PROGRESS_BYTES;
        if (account.heldBytes > MEMORY_GUARANTEED_BYTES && isSlow && holder.waitsForClient()) holder.cutOff();
      }
    }, MEMORY_PRESSURE_MS);
    return timer.unref();
  }
}

interface PoolSide {
  readonly take: (bytes: number, onGranted: () => void) => boolean;
  readonly give: (bytes: number) => void;
  readonly close: () => void;
}

/** One client's. */
export class MemoryAccount {
  readonly holder: MemoryHolder;
  readonly #pool: PoolSide;
  heldBytes = 0;
  /** When the pool last looked. */
  lastMovedBytes = 0;

  constructor(holder: MemoryHolder, pool: PoolSide) {
    this.holder = holder;
    this.#pool = pool;
  }

  /** Whether it is granted at once; if not, `onGranted` is called once it is. */
  take(bytes: number, onGranted: () => void): boolean {
    return this.#pool.take(bytes, onGranted);
  }

  give(bytes: number): void {
    this.#pool.give(bytes);
  }

  /** Gives back all, and waits for nothing any more. */
  close(): void {
    this.#pool.close();
  }
}

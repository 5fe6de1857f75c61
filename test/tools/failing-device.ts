/**
 * A block device that fails, holds and delays chosen requests of the device below, on command.
 *
 *     const device = new FailingDevice(new MemoryDevice(MEBIBYTE));
 *     device.fail({ operation: "write", offset: 4096, lengthBytes: 512, count: 1 }, "ENOSPC");
 *     const held = device.hold({ operation: "flush" });
 *     const flushed = device.flush();
 *     await held.arrived(1);          // the flush is here, and does not go on
 *     held.release();                 // lets it, and all that follow, go on
 *     await flushed;
 *
 * Rules are tried in the order they were made; the first one that matches takes the request.
 */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../../src/block/device.js";
import { Flag } from "../../src/block/device.js";
import type { Errno } from "../../src/errors.js";
import { DeviceError } from "../../src/errors.js";
import type { Random } from "./seed.js";

export type Operation = "read" | "write" | "zero" | "trim" | "flush" | "extents";

/** A request as it arrived; flush has offset and length 0. */
export interface Request {
  readonly operation: Operation;
  readonly offset: number;
  readonly lengthBytes: number;
  readonly flags: Flags;
}

/** Which requests a rule takes; what is left out matches all. */
export interface Match {
  readonly operation?: Operation | readonly Operation[];
  /** Only requests that overlap the range [offset, offset + lengthBytes); never a flush. */
  readonly offset?: number;
  readonly lengthBytes?: number;
  /** Only requests for which this is true. */
  readonly where?: (request: Request) => boolean;
  /** How many matching requests to let through first; default 0. */
  readonly skip?: number;
  /** How many requests to take; default: all. */
  readonly count?: number;
  /** Take the request before the device below has seen it (default), or when that has done it. */
  readonly when?: "before" | "after";
}

/** A rule in force. */
export interface Rule {
  /** How many requests it took so far. */
  readonly taken: number;
  /** Takes no more; what is held stays held. */
  remove(): void;
}

/** Requests that a hold() rule keeps. */
export interface Held extends Rule {
  /** Those held now, oldest first. */
  readonly requests: readonly Request[];
  /** Resolves once `count` requests are held at the same time. */
  arrived(count: number): Promise<void>;
  /** Lets the held request with this place in `requests` go on. */
  releaseOne(index?: number): void;
  /** Fails the held request with this place in `requests`. */
  failOne(errno: Errno, index?: number): void;
  /** Lets all go on and removes the rule. */
  release(): void;
}

/** Decides over a request: resolves to let it go on, rejects to fail it. */
type Decide = (request: Request) => Promise<void>;

class RequestRule implements Rule {
  readonly match: Match;
  readonly decide: Decide;
  taken = 0;
  #skipped = 0;
  #removed = false;

  constructor(match: Match, decide: Decide) {
    this.match = match;
    this.decide = decide;
  }

  remove(): void {
    this.#removed = true;
  }

  concerns(request: Request): boolean {
    return !this.#removed && concerns(this.match, request);
  }

  /** Whether the rule takes this request; counts it if so. */
  takes(request: Request): boolean {
    const { match } = this;
    if (!this.concerns(request)) return false;
    if (this.#skipped < (match.skip ?? 0)) {
      this.#skipped++;
      return false;
    }
    if (this.taken >= (match.count ?? Infinity)) return false;
    this.taken++;
    return true;
  }
}

interface HeldRequest {
  readonly request: Request;
  readonly resolve: () => void;
  readonly reject: (error: DeviceError) => void;
}

class HoldRule extends RequestRule implements Held {
  readonly #held: HeldRequest[];
  readonly #waiters: { readonly count: number; readonly resolve: () => void }[] = [];

  constructor(match: Match) {
    const held: HeldRequest[] = [];
    super(match, (request) => {
      const decided = new Promise<void>((resolve, reject) => {
        held.push({ request, resolve, reject });
      });
      this.#wake();
      return decided;
    });
    this.#held = held;
  }

  get requests(): readonly Request[] {
    return this.#held.map((held) => held.request);
  }

  arrived(count: number): Promise<void> {
    return new Promise((resolve) => {
      this.#waiters.push({ count, resolve });
      this.#wake();
    });
  }

  releaseOne(index = 0): void {
    this.#takeOut(index).resolve();
  }

  failOne(errno: Errno, index = 0): void {
    const { request, reject } = this.#takeOut(index);
    reject(injected(errno, request));
  }

  release(): void {
    this.remove();
    for (const held of this.#held.splice(0)) held.resolve();
  }

  #takeOut(index: number): HeldRequest {
    const [held] = this.#held.splice(index, 1);
    if (held === undefined) throw new Error(`no request is held at place ${index}`);
    return held;
  }

  #wake(): void {
    for (const waiter of this.#waiters) if (this.#held.length >= waiter.count) waiter.resolve();
  }
}

export class FailingDevice implements BlockDevice {
  readonly info: DeviceInfo;
  /** Every request that arrived, oldest first, whatever became of it. */
  readonly log: Request[] = [];
  readonly #next: BlockDevice;
  #rules: RequestRule[] = [];

  constructor(next: BlockDevice) {
    this.#next = next;
    this.info = next.info;
  }

  /**
   * Requests that match fail with `errno`; with `when: "after"` they have been done all the same.
   * @param failedAt the offset that the error tells
   */
  fail(match: Match, errno: Errno = "EIO", failedAt: number | null = null): Rule {
    return this.#add(new RequestRule(match, (request) => Promise.reject(injected(errno, request, failedAt))));
  }

  /** Requests that match stay here until released or failed one by one. */
  hold(match: Match): Held {
    return this.#add(new HoldRule(match));
  }

  /** Requests that match wait for a time; for demonstrations and load, not for making an order certain. */
  delay(match: Match, delayMs: number): Rule {
    return this.#add(new RequestRule(match, () => new Promise((resolve) => setTimeout(resolve, delayMs))));
  }

  /** Requests that match wait for a random number of turns of the event loop, and so overtake each other. */
  reorder(match: Match, random: Random, turnsMaximum = 4): Rule {
    return this.#add(new RequestRule(match, () => turns(random.below(turnsMaximum + 1))));
  }

  /** Removes all rules; what they hold stays held. */
  clear(): void {
    for (const rule of this.#rules) rule.remove();
    this.#rules = [];
  }

  read(offset: number, into: Buffer): Promise<void> {
    const request: Request = { operation: "read", offset, lengthBytes: into.length, flags: Flag.None };
    return this.#pass(request, () => this.#next.read(offset, into));
  }

  /** Whatever a rule is about takes the long way. */
  tryRead(offset: number, into: Buffer): boolean {
    const request: Request = { operation: "read", offset, lengthBytes: into.length, flags: Flag.None };
    if (this.#rules.some((rule) => rule.concerns(request))) return false;
    if (this.#next.tryRead?.(offset, into) !== true) return false;
    this.log.push(request);
    return true;
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    const request: Request = { operation: "write", offset, lengthBytes: from.length, flags };
    return this.#pass(request, () => this.#next.write(offset, from, flags));
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    const request: Request = { operation: "zero", offset, lengthBytes, flags };
    return this.#pass(request, () => this.#next.zero(offset, lengthBytes, flags));
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    const request: Request = { operation: "trim", offset, lengthBytes, flags };
    return this.#pass(request, () => this.#next.trim(offset, lengthBytes, flags));
  }

  flush(): Promise<void> {
    const request: Request = { operation: "flush", offset: 0, lengthBytes: 0, flags: Flag.None };
    return this.#pass(request, () => this.#next.flush());
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const request: Request = { operation: "extents", offset, lengthBytes, flags: Flag.None };
    return this.#pass(request, () => this.#next.extents(offset, lengthBytes, maxExtents));
  }

  close(): Promise<void> {
    return this.#next.close();
  }

  #add<R extends RequestRule>(rule: R): R {
    this.#rules.push(rule);
    return rule;
  }

  async #pass<T>(request: Request, next: () => Promise<T>): Promise<T> {
    this.log.push(request);
    const rule = this.#rules.find((candidate) => candidate.takes(request));
    if (rule?.match.when === "after") {
      const result = await next();
      await rule.decide(request);
      return result;
    }
    if (rule !== undefined) await rule.decide(request);
    return next();
  }
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve));
}

function concerns(match: Match, request: Request): boolean {
  const { operation, offset = 0, lengthBytes = Infinity } = match;
  if (operation !== undefined && ![operation].flat().includes(request.operation)) return false;
  const inRange = request.offset < offset + lengthBytes && request.offset + request.lengthBytes > offset;
  const bounded = match.offset !== undefined || match.lengthBytes !== undefined;
  return (!bounded || inRange) && (match.where?.(request) ?? true);
}

function injected(errno: Errno, request: Request, failedAt: number | null = null): DeviceError {
  const { operation, offset, lengthBytes } = request;
  const message = `injected ${errno}: ${operation} at ${offset}, ${lengthBytes} bytes`;
  return new DeviceError(errno, message, { offset: failedAt });
}

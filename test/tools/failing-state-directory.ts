/**
 * A state directory that fails and holds chosen calls, on command: what FailingDevice is for a disk.
 *
 *     directory.fail({ operation: "write", name: /^hidden-/ }, "ENOSPC");
 *     const held = directory.hold({ operation: "sync", name: /^hidden-/, count: 1 });
 *     await held.arrived;
 *     held.release();
 */
import { Deferred } from "../../src/deferred.js";
import { DeviceError, type Errno } from "../../src/errors.js";
import type { StateDirectory, StateFile } from "../../src/meta/state-directory.js";
import { turns } from "./outcome.js";
import type { Random } from "./seed.js";

export type StateOperation =
  | "create"
  | "open"
  | "replace"
  | "remove"
  | "rename"
  | "truncate"
  | "read"
  | "write"
  | "punch"
  | "sync"
  | "close";

/** Which calls a rule takes. */
export interface StateMatch {
  readonly operation: StateOperation;
  readonly name?: RegExp;
  /** How many to take; default: all. */
  readonly count?: number;
}

/** The calls that a hold() rule keeps. */
export interface HeldCalls {
  /** Resolves once a call is held. */
  readonly arrived: Promise<void>;
  /** Lets all go on and removes the rule. */
  release(): void;
}

interface Rule {
  readonly match: StateMatch;
  readonly decide: () => Promise<void>;
  taken: number;
}

export class FailingStateDirectory implements StateDirectory {
  readonly path: string;
  readonly #next: StateDirectory;
  #rules: Rule[] = [];
  #delay: () => Promise<void> = () => Promise.resolve();

  constructor(next: StateDirectory) {
    this.path = next.path;
    this.#next = next;
  }

  fail(match: StateMatch, errno: Errno = "EIO"): void {
    this.#rules.push({
      match,
      taken: 0,
      decide: () => Promise.reject(new DeviceError(errno, `injected ${errno}: ${match.operation}`)),
    });
  }

  hold(match: StateMatch): HeldCalls {
    const arrived = new Deferred<void>();
    const released = new Deferred<void>();
    const rule: Rule = {
      match,
      taken: 0,
      decide: () => {
        arrived.resolve();
        return released.promise;
      },
    };
    this.#rules.push(rule);
    return {
      arrived: arrived.promise,
      release: () => {
        this.#rules = this.#rules.filter((other) => other !== rule);
        released.resolve();
      },
    };
  }

  /** Each call that no rule takes waits for a random number of turns of the event loop, and so overtakes others. */
  reorder(random: Random, turnsMaximum = 2): void {
    this.#delay = () => turns(random.below(turnsMaximum + 1));
  }

  /** Removes all rules; what they hold stays held. */
  clear(): void {
    this.#rules = [];
  }

  async create(name: string): Promise<StateFile> {
    await this.#decide("create", name);
    return this.#file(name, await this.#next.create(name));
  }

  async open(name: string): Promise<StateFile> {
    await this.#decide("open", name);
    return this.#file(name, await this.#next.open(name));
  }

  async replaceText(name: string, text: string): Promise<void> {
    await this.#decide("replace", name);
    await this.#next.replaceText(name, text);
  }

  readText(name: string): Promise<string | null> {
    return this.#next.readText(name);
  }

  async rename(name: string, newName: string): Promise<void> {
    await this.#decide("rename", name);
    await this.#next.rename(name, newName);
  }

  async truncate(name: string, lengthBytes: number): Promise<void> {
    await this.#decide("truncate", name);
    await this.#next.truncate(name, lengthBytes);
  }

  async remove(name: string): Promise<void> {
    await this.#decide("remove", name);
    await this.#next.remove(name);
  }

  freeBytes(): Promise<number> {
    return this.#next.freeBytes();
  }

  list(): Promise<string[]> {
    return this.#next.list();
  }

  async #decide(operation: StateOperation, name: string): Promise<void> {
    const rule = this.#rules.find(
      ({ match, taken }) =>
        match.operation === operation &&
        (match.name?.test(name) ?? true) &&
        taken < (match.count ?? Infinity),
    );
    if (rule === undefined) {
      await this.#delay();
      return;
    }
    rule.taken++;
    await rule.decide();
  }

  #file(name: string, file: StateFile): StateFile {
    const self: StateFile = {
      path: file.path,
      get sizeBytes() {
        return file.sizeBytes;
      },
      read: async (position, into) => {
        await this.#decide("read", name);
        await file.read(position, into);
      },
      write: async (position, buffers) => {
        await this.#decide("write", name);
        await file.write(position, buffers);
      },
      punch: async (position, lengthBytes) => {
        await this.#decide("punch", name);
        return file.punch(position, lengthBytes);
      },
      sync: async () => {
        await this.#decide("sync", name);
        await file.sync();
      },
      writeDurably: async (position, buffers) => {
        // Held or failed at its "sync", some of it may have reached the medium.
        await self.write(position, buffers);
        await this.#decide("sync", name);
        await file.writeDurably(position, buffers);
      },
      close: async () => {
        await this.#decide("close", name);
        await file.close();
      },
    };
    return self;
  }
}

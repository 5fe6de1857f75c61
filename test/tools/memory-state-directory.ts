/**
 * A state directory in memory, for tests: counts what is done to its files, and holds or fails it on command.
 *
 *     directory.intercept = ({ kind }) => (kind === "sync" ? held.promise : undefined);
 *
 * Each file has two contents: what reads see, and what its last sync made durable; crash() leaves only the latter.
 * What a call has done that fails with a StorageFault is up to `isDone`: after a failed sync some of what was written is durable, some
 * gone at once, and some seen until the crash, though no later sync will make it durable.
 */
import { asError, DeviceError, MetadataError } from "../../src/errors.js";
import type { StateDirectory, StateFile } from "../../src/meta/state-directory.js";

/** What a disk writes whole or not at all; some do so with 4096. */
const SECTOR_BYTES = 512;

/** Rejecting with this, `intercept` fails a call that may have done a part of its work: see `isDone`. */
export class StorageFault extends DeviceError {}

/** One call on a file, before it is done. */
export interface StateOperation {
  readonly kind:
    | "create"
    | "open"
    | "read"
    | "write"
    | "punch"
    | "sync"
    | "close"
    | "replace"
    | "remove"
    | "rename"
    | "truncate";
  readonly name: string;
}

interface Content {
  bytes: Buffer;
  durable: Buffer;
  /** Sectors that a failed sync gave up: no later one makes them durable, unless they are written again. */
  readonly forgotten: Set<number>;
  /** The last write of each sector, and of all: they are numbered. */
  readonly writtenBy: Map<number, number>;
  lastWrite: number;
  /** What syncs that are under way will have made durable, oldest first. */
  readonly syncs: { reached: Buffer }[];
  /** After a crash it is the old or the new one, as a whole. */
  readonly isReplaced: boolean;
}

export class MemoryStateDirectory implements StateDirectory {
  readonly path = "/state";
  /** Every call, oldest first. */
  readonly log: StateOperation[] = [];
  /** Asked before each call: a promise holds it, a rejection fails it. */
  intercept: (operation: StateOperation) => Promise<void> | undefined = () => undefined;
  /** Asked for each part of a call that fails with a StorageFault, a sector or the whole, whether it was done all the same. */
  isDone: () => boolean = () => false;
  /** Whether its files give space back. */
  canPunch = true;
  /** What freeBytes() tells. */
  bytesLeft = Infinity;
  readonly #files = new Map<string, Content>();

  /** How many calls of a kind there were. */
  count(kind: StateOperation["kind"], name?: string): number {
    return this.log.filter(
      (operation) => operation.kind === kind && (name ?? operation.name) === operation.name,
    ).length;
  }

  /** A copy of what reads of the file see. */
  contents(name: string): Buffer {
    return Buffer.from(this.#content(name).bytes);
  }

  /** Sets a file's content, past every rule and counter. */
  put(name: string, bytes: Buffer): void {
    this.#files.set(name, contentOf(bytes, bytes));
  }

  /** Removes a file, past every rule and counter. */
  discard(name: string): void {
    this.#files.delete(name);
  }

  /**
   * Power loss: what was not synced is gone.
   * @param survives asked for each sector that was written and not synced; default: none does
   * @param sectorBytes of the disk
   */
  crash(survives: () => boolean = () => false, sectorBytes = SECTOR_BYTES): void {
    for (const content of this.#files.values()) {
      content.forgotten.clear();
      if (content.isReplaced) {
        if (!survives()) content.bytes = content.durable;
        content.durable = content.bytes;
        continue;
      }
      // Cut, and not synced since: it may be as long as it was.
      const isLonger = content.durable.length > content.bytes.length && !survives();
      const left = Buffer.alloc(isLonger ? content.durable.length : content.bytes.length);
      content.durable.copy(left);
      let lengthBytes = Math.min(content.durable.length, left.length);
      for (let at = 0; at < content.bytes.length; at += sectorBytes) {
        const sector = content.bytes.subarray(at, at + sectorBytes);
        if (sector.equals(content.durable.subarray(at, at + sectorBytes)) || !survives()) continue;
        sector.copy(left, at);
        lengthBytes = Math.max(lengthBytes, at + sector.length);
      }
      content.bytes = left.subarray(0, lengthBytes);
      content.durable = Buffer.from(content.bytes);
    }
  }

  async create(name: string): Promise<StateFile> {
    await this.#change({ kind: "create", name }, () => {
      this.#files.set(name, contentOf(Buffer.alloc(0), Buffer.alloc(0)));
    });
    return this.#file(name);
  }

  async open(name: string): Promise<StateFile> {
    await this.#ask({ kind: "open", name });
    if (!this.#files.has(name)) throw new MetadataError("missing", `${this.path}/${name} is missing`);
    return this.#file(name);
  }

  async replaceText(name: string, text: string): Promise<void> {
    await this.#ask({ kind: "replace", name }, () => {
      if (!this.isDone()) return;
      // The name is the new file's, but not durably.
      const old = this.#files.get(name)?.durable ?? Buffer.alloc(0);
      this.#files.set(name, { ...contentOf(Buffer.from(text), old), isReplaced: true });
    });
    this.put(name, Buffer.from(text));
  }

  readText(name: string): Promise<string | null> {
    return Promise.resolve(this.#files.get(name)?.bytes.toString() ?? null);
  }

  async remove(name: string): Promise<void> {
    await this.#change({ kind: "remove", name }, () => {
      this.#files.delete(name);
    });
  }

  async rename(name: string, newName: string): Promise<void> {
    await this.#change({ kind: "rename", name }, () => {
      this.#files.set(newName, this.#content(name));
      this.#files.delete(name);
    });
  }

  async truncate(name: string, lengthBytes: number): Promise<void> {
    await this.#change({ kind: "truncate", name }, () => {
      const content = this.#content(name);
      content.bytes = content.bytes.subarray(0, lengthBytes);
      for (const sector of content.forgotten) {
        if (sector * SECTOR_BYTES >= lengthBytes) content.forgotten.delete(sector);
      }
    });
  }

  freeBytes(): Promise<number> {
    return Promise.resolve(this.bytesLeft);
  }

  list(): Promise<string[]> {
    return Promise.resolve([...this.#files.keys()]);
  }

  /** @param onFailure what a call does that fails */
  async #ask(operation: StateOperation, onFailure: () => void = () => undefined): Promise<void> {
    this.log.push(operation);
    try {
      await this.intercept(operation);
    } catch (error) {
      if (error instanceof StorageFault) onFailure();
      throw error;
    }
  }

  async #change(operation: StateOperation, change: () => void): Promise<void> {
    await this.#ask(operation, () => {
      if (this.isDone()) change();
    });
    change();
  }

  /** Some sectors of a write that failed are there. */
  #tear(content: Content, position: number, by: Buffer): void {
    for (let at = 0; at < by.length;) {
      const end = Math.min(by.length, at + SECTOR_BYTES - ((position + at) % SECTOR_BYTES));
      if (this.isDone()) write(content, position + at, by.subarray(at, end));
      at = end;
    }
  }

  /** Of what a sync was to make durable some sectors are, some are not even seen any more. @param lastWrite when it began */
  #forget(content: Content, reached: Buffer, lastWrite: number): void {
    for (let at = 0; at < reached.length; at += SECTOR_BYTES) {
      // What was written since, the same once more too, is another sync's.
      if ((content.writtenBy.get(at / SECTOR_BYTES) ?? 0) > lastWrite) continue;
      const sector = reached.subarray(at, at + SECTOR_BYTES);
      const old = Buffer.alloc(sector.length);
      content.durable.subarray(at, at + sector.length).copy(old);
      if (sector.equals(old)) continue;
      if (this.isDone()) {
        content.durable = overwritten(content.durable, at, sector);
        continue;
      }
      content.forgotten.add(at / SECTOR_BYTES);
      const isSeen = content.bytes.subarray(at, at + sector.length).equals(sector);
      if (isSeen && this.isDone()) content.bytes = overwritten(content.bytes, at, old);
    }
  }

  #content(name: string): Content {
    const content = this.#files.get(name);
    if (content === undefined) throw new Error(`there is no file ${name}`);
    return content;
  }

  #file(name: string): StateFile {
    // As an open file does, it outlives its name.
    const content = this.#content(name);
    const path = `${this.path}/${name}`;
    let failure: Error | null = null;
    let isClosed = false;
    // Of a real one the descriptor may be another file's by then.
    const refuseIfClosed = (): void => {
      if (isClosed) throw new Error(`${path} is used after it was closed`);
    };
    const refuse = (): void => {
      refuseIfClosed();
      if (failure !== null) throw failure;
    };
    const self: StateFile = {
      path,
      get sizeBytes() {
        return content.bytes.length;
      },
      read: async (position, into) => {
        refuseIfClosed();
        await this.#ask({ kind: "read", name });
        if (position + into.length > content.bytes.length) throw new DeviceError("EIO", `${path} ends`);
        content.bytes.copy(into, 0, position);
      },
      write: async (position, buffers) => {
        refuseIfClosed();
        // What is written is what the buffers hold now: a caller that changes them too early is found out.
        await this.#ask({ kind: "write", name }, () => {
          this.#tear(content, position, Buffer.concat(buffers));
        });
        write(content, position, Buffer.concat(buffers));
      },
      punch: async (position, lengthBytes) => {
        refuseIfClosed();
        const zeroes = Buffer.alloc(Math.max(0, Math.min(lengthBytes, content.bytes.length - position)));
        await this.#ask({ kind: "punch", name }, () => {
          if (this.canPunch) this.#tear(content, position, zeroes);
        });
        if (this.canPunch) write(content, position, zeroes);
        return this.canPunch;
      },
      sync: async () => {
        refuse();
        const { lastWrite } = content;
        const sync = { reached: durableAfterSync(content) };
        content.syncs.push(sync);
        try {
          await this.#ask({ kind: "sync", name }, () => {
            this.#forget(content, sync.reached, lastWrite);
            failure = new DeviceError("EIO", `${path} could not be synced before`);
          });
          // Of those under way, none that began earlier takes back what is durable now.
          for (const other of content.syncs.slice(0, content.syncs.indexOf(sync)))
            other.reached = sync.reached;
          content.durable = sync.reached;
        } finally {
          content.syncs.splice(content.syncs.indexOf(sync), 1);
        }
      },
      // Nothing else becomes durable with it: what lies before may be another such write, that is under way.
      writeDurably: async (position, buffers) => {
        refuse();
        try {
          await self.write(position, buffers);
          const written = Buffer.concat(buffers);
          await this.#ask({ kind: "sync", name }, () => {
            this.#tear(content, position, written);
          });
          // A sync of another handle that failed meanwhile gave up nothing of it.
          write(content, position, written);
          content.durable = overwritten(content.durable, position, written);
          for (const sync of content.syncs) sync.reached = overwritten(sync.reached, position, written);
        } catch (error) {
          if (!(error instanceof DeviceError && error.errno === "ENOSPC")) failure = asError(error);
          throw error;
        }
      },
      close: () => {
        isClosed = true;
        return this.#ask({ kind: "close", name });
      },
    };
    return self;
  }
}

function contentOf(bytes: Buffer, durable: Buffer): Content {
  return {
    bytes: Buffer.from(bytes),
    durable: Buffer.from(durable),
    forgotten: new Set(),
    writtenBy: new Map(),
    lastWrite: 0,
    syncs: [],
    isReplaced: false,
  };
}

function write(content: Content, position: number, by: Buffer): void {
  content.bytes = overwritten(content.bytes, position, by);
  const end = position + by.length;
  content.lastWrite++;
  for (let sector = Math.floor(position / SECTOR_BYTES); sector * SECTOR_BYTES < end; sector++) {
    content.forgotten.delete(sector);
    content.writtenBy.set(sector, content.lastWrite);
  }
}

/** What a sync that begins now will have made durable. */
function durableAfterSync({ bytes, durable, forgotten }: Content): Buffer {
  if (forgotten.size === 0) return Buffer.from(bytes);
  const after = Buffer.from(bytes);
  for (const sector of forgotten) {
    const at = sector * SECTOR_BYTES;
    after.fill(0, at, at + SECTOR_BYTES);
    durable.subarray(at, at + SECTOR_BYTES).copy(after, at);
  }
  return after;
}

function overwritten(bytes: Buffer, position: number, by: Buffer): Buffer {
  const grown = Buffer.alloc(Math.max(bytes.length, position + by.length));
  bytes.copy(grown);
  by.copy(grown, position);
  return grown;
}

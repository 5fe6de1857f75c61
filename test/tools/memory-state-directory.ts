/**
 * A state directory in memory, for tests: counts what is done to its files, and holds or fails it on command.
 *
 *     directory.intercept = ({ kind }) => (kind === "sync" ? held.promise : undefined);
 *
 * Each file has two contents: what reads see, and what its last sync made durable; crash() leaves only the latter.
 */
import { DeviceError, MetadataError } from "../../src/errors.js";
import type { StateDirectory, StateFile } from "../../src/meta/state-directory.js";

/** What a disk writes whole or not at all; some do so with 4096. */
const SECTOR_BYTES = 512;

/** One call on a file, before it is done. */
export interface StateOperation {
  readonly kind: "create" | "open" | "read" | "write" | "sync" | "close" | "replace";
  readonly name: string;
}

interface Content {
  bytes: Buffer;
  durable: Buffer;
}

export class MemoryStateDirectory implements StateDirectory {
  readonly path = "/state";
  /** Every call, oldest first. */
  readonly log: StateOperation[] = [];
  /** Asked before each call: a promise holds it, a rejection fails it. */
  intercept: (operation: StateOperation) => Promise<void> | undefined = () => undefined;
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
    this.#files.set(name, { bytes: Buffer.from(bytes), durable: Buffer.from(bytes) });
  }

  /**
   * Power loss: what was not synced is gone.
   * @param survives asked for each sector that was written and not synced; default: none does
   * @param sectorBytes of the disk
   */
  crash(survives: () => boolean = () => false, sectorBytes = SECTOR_BYTES): void {
    for (const content of this.#files.values()) {
      const left = Buffer.alloc(content.bytes.length);
      content.durable.copy(left);
      let lengthBytes = content.durable.length;
      for (let at = 0; at < left.length; at += sectorBytes) {
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
    await this.#ask({ kind: "create", name });
    this.#files.set(name, { bytes: Buffer.alloc(0), durable: Buffer.alloc(0) });
    return this.#file(name);
  }

  async open(name: string): Promise<StateFile> {
    await this.#ask({ kind: "open", name });
    if (!this.#files.has(name)) throw new MetadataError("missing", `${this.path}/${name} is missing`);
    return this.#file(name);
  }

  async replaceText(name: string, text: string): Promise<void> {
    await this.#ask({ kind: "replace", name });
    this.put(name, Buffer.from(text));
  }

  readText(name: string): Promise<string | null> {
    return Promise.resolve(this.#files.get(name)?.bytes.toString() ?? null);
  }

  remove(name: string): Promise<void> {
    this.#files.delete(name);
    return Promise.resolve();
  }

  rename(name: string, newName: string): Promise<void> {
    this.#files.set(newName, this.#content(name));
    this.#files.delete(name);
    return Promise.resolve();
  }

  truncate(name: string, lengthBytes: number): Promise<void> {
    const content = this.#content(name);
    content.bytes = content.bytes.subarray(0, lengthBytes);
    return Promise.resolve();
  }

  freeBytes(): Promise<number> {
    return Promise.resolve(this.bytesLeft);
  }

  list(): Promise<string[]> {
    return Promise.resolve([...this.#files.keys()]);
  }

  async #ask(operation: StateOperation): Promise<void> {
    this.log.push(operation);
    await this.intercept(operation);
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
    const self: StateFile = {
      path,
      get sizeBytes() {
        return content.bytes.length;
      },
      read: async (position, into) => {
        await this.#ask({ kind: "read", name });
        if (position + into.length > content.bytes.length) throw new DeviceError("EIO", `${path} ends`);
        content.bytes.copy(into, 0, position);
      },
      write: async (position, buffers) => {
        // What is written is what the buffers hold now: a caller that changes them too early is found out.
        await this.#ask({ kind: "write", name });
        content.bytes = overwritten(content.bytes, position, Buffer.concat(buffers));
      },
      sync: async () => {
        const reached = content.bytes;
        await this.#ask({ kind: "sync", name });
        content.durable = Buffer.from(reached);
      },
      // Nothing else becomes durable with it: what lies before may be another such write, that is under way.
      writeDurably: async (position, buffers) => {
        await self.write(position, buffers);
        const written = Buffer.concat(buffers);
        await this.#ask({ kind: "sync", name });
        content.durable = overwritten(content.durable, position, written);
      },
      close: () => this.#ask({ kind: "close", name }),
    };
    return self;
  }
}

function overwritten(bytes: Buffer, position: number, by: Buffer): Buffer {
  const grown = Buffer.alloc(Math.max(bytes.length, position + by.length));
  bytes.copy(grown);
  by.copy(grown, position);
  return grown;
}

/**
 * What a disk may hold: for each sector the contents that were written to it, in order, and how far back a crash may fall.
 *
 * Each guest's write has a content of its own, so that a sector tells by which write it was left.
 */
import { SECTOR_BYTES } from "../tools/write-back-disk.js";

/** A run of sectors of a disk. */
export interface Run {
  readonly disk: number;
  readonly first: number;
  readonly count: number;
}

/** A content, by the number of its write; 0: zeroes. */
export type Value = number;

/** The content of sectors that a write of this number leaves. */
export function contentOf(value: Value, count: number): Buffer {
  const word = Buffer.alloc(WORD_BYTES);
  word.writeUInt32LE(value);
  return Buffer.alloc(count * SECTOR_BYTES, word);
}

/** The values that a range of bytes holds, sector by sector. @throws Error if a sector is a mixture */
export function valuesOf(bytes: Buffer): Value[] {
  const values: Value[] = [];
  for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
    const end = at + SECTOR_BYTES;
    const value = bytes.readUInt32LE(at);
    // Every word is as the one before it.
    if (bytes.compare(bytes, at, end - WORD_BYTES, at + WORD_BYTES, end) !== 0)
      throw new Error(`a sector is a mixture, with parts of ${value}`);
    values.push(value);
  }
  return values;
}

const WORD_BYTES = 4;

/** A sector's contents, oldest first; the first one may be any of several. */
interface Line {
  readonly entries: (readonly Value[])[];
  /** The last that was acknowledged, and the last that is durable. */
  acknowledged: number;
  durable: number;
}

/** A change under way: which entry it is of each of its sectors. */
export interface Change {
  readonly run: Run;
  readonly places: readonly { readonly line: Line; readonly entry: number }[];
  /** How often the history had fallen back when it was issued. */
  readonly falls: number;
}

const ZEROES: readonly Value[] = [0];

export class History {
  readonly #lines = new Map<number, Line>();
  #falls = 0;

  /** A change arrives. @param values one for each sector of the run */
  issue(run: Run, values: readonly Value[]): Change {
    const places = values.map((value, index) => {
      const line = this.#line(run.disk, run.first + index);
      return { line, entry: line.entries.push([value]) - 1 };
    });
    return { run, places, falls: this.#falls };
  }

  /** What was under way when what was acknowledged might get lost may be lost with it. */
  acknowledge({ places, falls }: Change, isDurable = false): void {
    if (falls !== this.#falls && !isDurable) return;
    for (const { line, entry } of places) {
      line.acknowledged = Math.max(line.acknowledged, entry);
      if (isDurable) line.durable = Math.max(line.durable, entry);
    }
  }

  /** A flush of all disks begins. @returns to be called when it is done */
  flush(): () => void {
    return this.#flush(() => true);
  }

  /** A flush of one disk begins. */
  flushOf(disk: number): () => void {
    return this.#flush((key) => Math.floor(key / DISK_KEYS) === disk);
  }

  #flush(concerns: (key: number) => boolean): () => void {
    const reached = [...this.#lines]
      .filter(([key]) => concerns(key))
      .map(([, line]) => ({ line, entry: line.acknowledged }));
    return () => {
      for (const { line, entry } of reached) line.durable = Math.max(line.durable, entry);
    };
  }

  /** What was only acknowledged may be gone. */
  fallBack(): void {
    this.#falls++;
    for (const line of this.#lines.values()) line.acknowledged = line.durable;
  }

  /** @returns what is wrong with this content, or null */
  check(disk: number, sector: number, value: Value): string | null {
    const line = this.#lines.get(keyOf(disk, sector));
    if (line === undefined) {
      return value === 0
        ? null
        : `sector ${sector} of disk ${disk} holds ${value}, which was never written to it`;
    }
    const allowed = line.entries.slice(line.acknowledged);
    if (allowed.some((values) => values.includes(value))) return null;
    const known = line.entries.map((values) => values.join("|")).join(" ");
    return `sector ${sector} of disk ${disk} holds ${value}; written: ${known}; acknowledged from place ${line.acknowledged}, durable from ${line.durable}`;
  }

  /** As check(), for what was written over a base that is not this history's. */
  checkOver(disk: number, sector: number, value: Value, base: Value): string | null {
    const line = this.#lines.get(keyOf(disk, sector));
    const isBase = line === undefined || line.acknowledged === 0;
    if (isBase && value === base) return null;
    if (line !== undefined && line.entries.slice(Math.max(1, line.acknowledged)).flat().includes(value))
      return null;
    return `sector ${sector} of disk ${disk} holds ${value} over ${base}; written: ${line?.entries.slice(1).flat().join(" ") ?? "nothing"}`;
  }

  /** All that a sector may have held since it began, but for what it began with. */
  valuesAt(disk: number, sector: number): readonly Value[] {
    return this.#lines.get(keyOf(disk, sector))?.entries.slice(1).flat() ?? [];
  }

  /** A read begins. @returns what is wrong with a value that it brought for a sector of the run, or null */
  snapshot({ disk, first }: Run): (index: number, value: Value) => string | null {
    const from = new Map([...this.#lines].map(([key, line]) => [key, line.acknowledged]));
    const falls = this.#falls;
    return (index, value) => {
      // What it fell back to is not known here.
      if (falls !== this.#falls) return null;
      const key = keyOf(disk, first + index);
      const line = this.#lines.get(key);
      const entries = line?.entries.slice(from.get(key) ?? 0).flat() ?? ZEROES;
      return entries.includes(value)
        ? null
        : `${value} at sector ${first + index} of disk ${disk}, not one of ${entries.join(" ")}`;
    };
  }

  /** Nothing is under way, and this is what the sector holds. @param isDurable whether a power loss can't change that */
  settle(disk: number, sector: number, value: Value, isDurable: boolean): void {
    const key = keyOf(disk, sector);
    const line = this.#lines.get(key);
    if (line === undefined && value === 0) return;
    if (line === undefined || isDurable) {
      this.#lines.set(key, { entries: [[value]], acknowledged: 0, durable: 0 });
      return;
    }
    const entries = line.entries.slice(line.durable);
    const place = entries.findLastIndex((values) => values.includes(value));
    const kept = place === -1 ? [...entries, [value]] : entries.slice(0, place + 1);
    this.#lines.set(key, { entries: kept, acknowledged: kept.length - 1, durable: 0 });
  }

  /** Another history begins with the contents that this one allows: that of a view which becomes the disk. */
  static from(base: ReadonlyMap<number, readonly Value[]>): History {
    const history = new History();
    for (const [key, values] of base) {
      history.#lines.set(key, { entries: [values], acknowledged: 0, durable: 0 });
    }
    return history;
  }

  #line(disk: number, sector: number): Line {
    const key = keyOf(disk, sector);
    let line = this.#lines.get(key);
    if (line === undefined) {
      line = { entries: [ZEROES], acknowledged: 0, durable: 0 };
      this.#lines.set(key, line);
    }
    return line;
  }
}

const DISK_KEYS = 2 ** 32;

export function keyOf(disk: number, sector: number): number {
  return disk * DISK_KEYS + sector;
}

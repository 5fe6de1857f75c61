/**
 * The file that a dirty map is kept in: two headers, the bits of the hot extents, the bits of the blocks.
 *
 * Invariants: the first header is written when everything else is in the file, durably: a file without one was never
 * finished. A sector is written in place, whole; torn, it fails its checksum only if the storage tears within 512 bytes.
 */
import { MetadataError } from "../errors.js";
import {
  BITS_PER_SECTOR,
  decodeHeader,
  decodeSector,
  type DirtyMapHeader,
  emptyWords,
  encodeHeader,
  encodeSector,
  HEADER_POSITIONS,
  type Region,
  REGIONS_POSITION,
  type Sector,
  SECTOR_BYTES,
} from "./dirty-map-format.js";
import type { StateDirectory, StateFile } from "./state-directory.js";

/** Sectors written or read as one request. */
const SECTORS_AT_ONCE = 1024;

export interface DirtyMapGeometry {
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly extentBytes: number;
}

export class DirtyMapFile {
  readonly #file: StateFile;
  readonly #geometry: DirtyMapGeometry;
  #header: DirtyMapHeader;

  private constructor(file: StateFile, geometry: DirtyMapGeometry, header: DirtyMapHeader) {
    this.#file = file;
    this.#geometry = geometry;
    this.#header = header;
  }

  /** Makes the file, with no bit set and no tenure; it is whole and durable when this resolves. */
  static async create(
    directory: StateDirectory,
    name: string,
    geometry: DirtyMapGeometry,
  ): Promise<DirtyMapFile> {
    const file = await directory.create(name);
    const map = new DirtyMapFile(file, geometry, { ...geometry, sequence: 0, tenure: null });
    const words = emptyWords();
    for (const region of ["hot", "blocks"] as const) {
      const sectors: Sector[] = [];
      for (let index = 0; index < map.sectors(region); index++) sectors.push({ region, index, words });
      await map.#write(sectors);
    }
    await file.sync();
    await map.setTenure(null);
    return map;
  }

  /**
   * @param restore told of every sector
   * @returns null if there is none, or one whose making was cut off
   * @throws MetadataError that names the file, what is wrong with it and what to do
   */
  static async open(
    directory: StateDirectory,
    name: string,
    geometry: DirtyMapGeometry,
    restore: (sector: Sector) => void,
  ): Promise<DirtyMapFile | null> {
    if (!(await directory.list()).includes(name)) return null;
    const file = await directory.open(name);
    try {
      const header = await readHeader(file);
      if (header === null) {
        await file.close();
        return null;
      }
      checkGeometry(file, header, geometry);
      const map = new DirtyMapFile(file, geometry, header);
      for (const region of ["hot", "blocks"] as const) await map.#read(region, restore);
      return map;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** The size of the disk that the file is of, in bytes; null as open(). @throws MetadataError as open() */
  static async diskSizeBytes(directory: StateDirectory, name: string): Promise<number | null> {
    if (!(await directory.list()).includes(name)) return null;
    const file = await directory.open(name);
    try {
      return (await readHeader(file))?.sizeBytes ?? null;
    } finally {
      await file.close();
    }
  }

  get tenure(): string | null {
    return this.#header.tenure;
  }

  /** How long the file of a disk is. */
  static sizeBytes(geometry: DirtyMapGeometry): number {
    return REGIONS_POSITION + (sectorsOf(geometry, "hot") + sectorsOf(geometry, "blocks")) * SECTOR_BYTES;
  }

  /** How many sectors a region has. */
  sectors(region: Region): number {
    return sectorsOf(this.#geometry, region);
  }

  /** Replaces sectors, durably. */
  async write(sectors: readonly Sector[]): Promise<void> {
    await this.#write(sectors);
    await this.#file.sync();
  }

  /** Replaces the tenure, durably. */
  async setTenure(tenure: string | null): Promise<void> {
    const sequence = this.#header.sequence + 1;
    const header = { ...this.#header, sequence, tenure };
    await this.#file.write(HEADER_POSITIONS[sequence % 2 === 0 ? 0 : 1], [encodeHeader(header)]);
    await this.#file.sync();
    this.#header = header;
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  /** Neighbours go as one request. */
  async #write(sectors: readonly Sector[]): Promise<void> {
    const ordered = sectors
      .map((sector) => ({ position: this.#position(sector.region, sector.index), sector }))
      .sort((one, other) => one.position - other.position);
    let run: Buffer[] = [];
    let start = 0;
    for (const { position, sector } of ordered) {
      if (
        run.length > 0 &&
        (position !== start + run.length * SECTOR_BYTES || run.length === SECTORS_AT_ONCE)
      ) {
        await this.#file.write(start, run);
        run = [];
      }
      if (run.length === 0) start = position;
      run.push(encodeSector(sector));
    }
    if (run.length > 0) await this.#file.write(start, run);
  }

  async #read(region: Region, restore: (sector: Sector) => void): Promise<void> {
    const count = this.sectors(region);
    for (let first = 0; first < count; first += SECTORS_AT_ONCE) {
      const some = Math.min(SECTORS_AT_ONCE, count - first);
      const bytes = Buffer.alloc(some * SECTOR_BYTES);
      const position = this.#position(region, first);
      if (position + bytes.length > this.#file.sizeBytes) {
        throw damaged(this.#file.path, `it has ${this.#file.sizeBytes} bytes and should have more`);
      }
      await this.#file.read(position, bytes);
      for (let at = 0; at < some; at++) {
        const index = first + at;
        const words = decodeSector(bytes.subarray(at * SECTOR_BYTES, (at + 1) * SECTOR_BYTES), region, index);
        if (words === null) {
          throw damaged(this.#file.path, `the sector at ${position + at * SECTOR_BYTES} fails its checksum`);
        }
        restore({ region, index, words });
      }
    }
  }

  #position(region: Region, index: number): number {
    const first = region === "hot" ? 0 : this.sectors("hot");
    return REGIONS_POSITION + (first + index) * SECTOR_BYTES;
  }
}

async function readHeader(file: StateFile): Promise<DirtyMapHeader | null> {
  if (file.sizeBytes < REGIONS_POSITION) {
    // Cut off in its making, or later: only the former leaves no header.
    const start = Buffer.alloc(Math.min(file.sizeBytes, REGIONS_POSITION));
    await file.read(0, start);
    if (start.every((byte) => byte === 0)) return null;
    throw damaged(file.path, `it has ${file.sizeBytes} bytes and should have more`);
  }
  const start = Buffer.alloc(REGIONS_POSITION);
  await file.read(0, start);
  if (start.every((byte) => byte === 0)) return null;
  const headers = HEADER_POSITIONS.map((position) =>
    decodeHeader(start.subarray(position, position + SECTOR_BYTES), file.path),
  );
  let newest: DirtyMapHeader | null = null;
  for (const header of headers) {
    if (header !== null && header.sequence > (newest?.sequence ?? -1)) newest = header;
  }
  if (newest === null) throw damaged(file.path, "neither of its headers is whole");
  return newest;
}

function checkGeometry(file: StateFile, header: DirtyMapHeader, geometry: DirtyMapGeometry): void {
  const { sizeBytes, blockBytes, extentBytes } = geometry;
  if (header.sizeBytes !== sizeBytes) {
    throw damaged(file.path, `it is of a disk of ${header.sizeBytes} bytes, not ${sizeBytes}`);
  }
  if (header.blockBytes !== blockBytes || header.extentBytes !== extentBytes) {
    throw damaged(
      file.path,
      `its blocks have ${header.blockBytes} and its extents ${header.extentBytes} bytes`,
    );
  }
}

function sectorsOf({ sizeBytes, blockBytes, extentBytes }: DirtyMapGeometry, region: Region): number {
  const bits = Math.ceil(sizeBytes / (region === "hot" ? extentBytes : blockBytes));
  return Math.ceil(bits / BITS_PER_SECTOR);
}

function damaged(path: string, what: string): MetadataError {
  return new MetadataError(
    "damaged",
    `${path} is damaged: ${what}: restore it, or remove it, which costs a full copy`,
  );
}

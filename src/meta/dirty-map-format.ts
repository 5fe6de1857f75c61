/**
 * The bytes of a dirty map's file: header, sectors of bits, checksums. No I/O here.
 * docs/formats.md describes the same for people; change both together, and the version with them.
 */
import { crc32 } from "node:zlib";
import { otherVersion } from "./other-version.js";

const MAGIC = Buffer.from("NBDREPLD");
const VERSION = 1;
export const SECTOR_BYTES = 512;
/** Two headers, the newer one counts: a torn write leaves the other. */
export const HEADER_POSITIONS = [0, 2048] as const;
/** Where the first region starts. */
export const REGIONS_POSITION = 4096;
const HEADER_CRC_AT = 64;
const SECTOR_CRC_AT = 508;
const WORDS = 126;
/** A multiple of the number of blocks in an extent, so that all blocks of an extent are in one sector. */
export const BITS_PER_SECTOR = WORDS * 32;

/** Bits of a region: of the hot extents, or of the blocks that are not on the replica. */
export type Region = "hot" | "blocks";
const REGION_CODES: Record<Region, number> = { hot: 0x48, blocks: 0x42 };

export interface DirtyMapHeader {
  /** Grows with each header written. */
  readonly sequence: number;
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly extentBytes: number;
  /** A uuid, or null. */
  readonly tenure: string | null;
}

export interface Sector {
  readonly region: Region;
  /** Within the region. */
  readonly index: number;
  /** BITS_PER_SECTOR bits. */
  readonly words: Uint32Array;
}

export function emptyWords(): Uint32Array {
  return new Uint32Array(WORDS);
}

export function encodeHeader(header: DirtyMapHeader): Buffer {
  const bytes = Buffer.alloc(SECTOR_BYTES);
  MAGIC.copy(bytes, 0);
  bytes.writeUInt32BE(VERSION, 8);
  bytes.writeUInt32BE(header.blockBytes, 12);
  bytes.writeUInt32BE(header.extentBytes, 16);
  bytes.writeBigUInt64BE(BigInt(header.sequence), 24);
  bytes.writeBigUInt64BE(BigInt(header.sizeBytes), 32);
  if (header.tenure !== null) Buffer.from(header.tenure.replaceAll("-", ""), "hex").copy(bytes, 40);
  bytes.writeUInt32BE(crc32(bytes.subarray(0, HEADER_CRC_AT)), HEADER_CRC_AT);
  return bytes;
}

/**
 * @returns null if these bytes are no whole header
 * @throws MetadataError "version"
 */
export function decodeHeader(bytes: Buffer, path: string): DirtyMapHeader | null {
  if (!bytes.subarray(0, MAGIC.length).equals(MAGIC)) return null;
  if (bytes.readUInt32BE(HEADER_CRC_AT) !== crc32(bytes.subarray(0, HEADER_CRC_AT))) return null;
  const version = bytes.readUInt32BE(8);
  if (version !== VERSION) throw otherVersion(path, version, VERSION);
  const hex = bytes.toString("hex", 40, 56);
  const tenure = /^0+$/.test(hex) ? null : hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
  return {
    sequence: Number(bytes.readBigUInt64BE(24)),
    sizeBytes: Number(bytes.readBigUInt64BE(32)),
    blockBytes: bytes.readUInt32BE(12),
    extentBytes: bytes.readUInt32BE(16),
    tenure,
  };
}

export function encodeSector({ region, index, words }: Sector): Buffer {
  const bytes = Buffer.alloc(SECTOR_BYTES);
  for (const [at, word] of words.entries()) bytes.writeUInt32BE(word, at * 4);
  bytes.writeUInt32BE(sectorCrc(bytes, region, index), SECTOR_CRC_AT);
  return bytes;
}

/** @returns the bits, or null if these bytes are not that sector */
export function decodeSector(bytes: Buffer, region: Region, index: number): Uint32Array | null {
  if (bytes.readUInt32BE(SECTOR_CRC_AT) !== sectorCrc(bytes, region, index)) return null;
  const words = emptyWords();
  for (let at = 0; at < WORDS; at++) words[at] = bytes.readUInt32BE(at * 4);
  return words;
}

/** Seeded with the sector's place, so that none is taken for another. */
function sectorCrc(bytes: Buffer, region: Region, index: number): number {
  const place = Buffer.alloc(8);
  place.writeUInt32BE(REGION_CODES[region], 0);
  place.writeUInt32BE(index, 4);
  return crc32(bytes.subarray(0, SECTOR_CRC_AT), crc32(place));
}

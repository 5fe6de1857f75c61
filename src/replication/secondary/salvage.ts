/**
 * What a node gave up for a primary with another history, as images that people can look into: the before-images of the epoch
 * in which it was resynced (docs/formats.md, `salvage-E.log`).
 */
import { type FileHandle, mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import { isErrno, MetadataError, StateError } from "../../errors.js";
import { readMetadata } from "../../meta/metadata.js";
import { OverlayLog } from "../../meta/overlay-log.js";
import type { RecoveredRecord } from "../../meta/overlay-log-recovery.js";
import type { StateDirectory } from "../../meta/state-directory.js";

const PATTERN = /^salvage-(\d+)\.log$/;

/** What a node gave up is kept under this name. */
export function salvageName(epoch: number): string {
  return `salvage-${epoch}.log`;
}

/** The epoch of the newest of them, or null. */
export function lastSalvage(files: readonly string[]): number | null {
  const epochs = files.flatMap((file) => PATTERN.exec(file)?.[1] ?? []).map(Number);
  return epochs.length === 0 ? null : Math.max(...epochs);
}

export interface SalvagedDisk {
  /** A raw image of the disk's size, sparse: only what was given up is in it, at its own offset. */
  readonly image: string;
  readonly bytes: number;
}

/**
 * Writes an image for each disk, and beside it the list of its extents: offset and length in bytes, a line each.
 * @param output a directory, which must not exist
 * @throws StateError if nothing was given up, or the directory exists; MetadataError if the log can't be read
 */
export async function extractSalvage(directory: StateDirectory, output: string): Promise<SalvagedDisk[]> {
  const epoch = lastSalvage(await directory.list());
  if (epoch === null) {
    throw new StateError(
      "nothing-salvaged",
      `${directory.path} has no salvage-*.log: this node gave up nothing`,
    );
  }
  const metadata = await readMetadata(directory);
  if (metadata === null) throw new MetadataError("missing", `${directory.path}/metadata.json is missing`);
  const records: RecoveredRecord[] = [];
  const log = await OverlayLog.recover(directory, salvageName(epoch), { epoch, sync: false }, (record) => {
    records.push(record);
  });
  try {
    await makeOutput(output);
    const disks: SalvagedDisk[] = [];
    for (const [index, { name, sizeBytes }] of metadata.disks.entries()) {
      const own = records.filter(({ disk }) => disk === index);
      const image = join(output, `${name}.img`);
      disks.push({ image, bytes: await writeImage(image, sizeBytes, own, log) });
    }
    return disks;
  } finally {
    await log.close();
  }
}

async function makeOutput(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (error) {
    if (!isErrno(error, "EEXIST")) throw error;
    throw new StateError(
      "output-exists",
      `${path} is there already: name a directory that is not, or remove it`,
    );
  }
}

async function writeImage(
  image: string,
  sizeBytes: number,
  records: readonly RecoveredRecord[],
  log: OverlayLog,
): Promise<number> {
  const file = await open(image, "wx", 0o600);
  const extents = await open(`${image}.extents`, "wx", 0o600);
  try {
    await file.truncate(sizeBytes);
    let bytes = 0;
    for (const { kind, offset, lengthBytes, position } of records) {
      await extents.appendFile(`${offset} ${lengthBytes}\n`);
      bytes += lengthBytes;
      if (kind === "zero") continue;
      const content = Buffer.allocUnsafe(lengthBytes);
      await log.read(position, content);
      await writeFully(file, content, offset);
    }
    await file.sync();
    return bytes;
  } finally {
    await extents.close();
    await file.close();
  }
}

/** A write that finds the file system full half way says how far it got, and no error: only the next one is refused. */
async function writeFully(file: FileHandle, content: Buffer, offset: number): Promise<void> {
  for (let done = 0; done < content.length;) {
    const { bytesWritten } = await file.write(content, done, content.length - done, offset + done);
    done += bytesWritten;
  }
}

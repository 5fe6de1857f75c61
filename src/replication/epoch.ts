/**
 * The overlays of an epoch and their files: one log of before-images for all disks, and, once a client writes to
 * the view, one log of allocations and a sparse data file for each disk.
 *
 * Invariants: files are named by their epoch; the metadata's epoch names those that count. Files of a later epoch
 * are there after a crash between a checkpoint's announcement and its durability: their before-images still count
 * for whatever the epoch in force has none of.
 */
import type { Clock } from "../clock.js";
import type { BlockDevice } from "../block/device.js";
import { ActiveOverlay } from "../block/overlay/active.js";
import { HiddenOverlay } from "../block/overlay/hidden.js";
import { makingRoom } from "../meta/making-room.js";
import type { LogEnd } from "../meta/metadata.js";
import { type LogOptions, OverlayLog } from "../meta/overlay-log.js";
import type { LogRecord } from "../meta/overlay-log-format.js";
import type { RecoveredRecord } from "../meta/overlay-log-recovery.js";
import type { StateDirectory, StateFile } from "../meta/state-directory.js";
import { DeviceError, MetadataError } from "../errors.js";
import { salvageName } from "./salvage.js";
import { Serial } from "./serial.js";

/** What was the log of an epoch that is over, to become that of one to come. */
const SPARE_NAME = "spare.log";
/** More than metadata.json and its directory need. */
const ROOM_BYTES = 64 * 1024;
/** A longer one is cut: it is there to be fast, not to fill the file system. */
const SPARE_MAXIMUM_BYTES = 512 * 1024 * 1024;
const FILE_PATTERN = /^(?:hidden|active)-(\d+)(?:-\d+)?\.(?:log|data)$/;

/** The overlays of one disk. */
interface DiskOverlays {
  readonly hidden: HiddenOverlay;
  readonly active: ActiveOverlay;
}

export interface Epoch {
  readonly number: number;
  readonly overlays: readonly DiskOverlays[];
  /** Size of the log of before-images. */
  readonly undoBytes: number;
  /** Whether before-images were lost: there is no checkpoint to go back to. */
  readonly isBroken: boolean;
  /** Gives up the checkpoint, for good and on stable storage. */
  breakCheckpoint(): Promise<void>;
  flush(): Promise<void>;
  /** Where each log ends, but for those that failed. Nothing is written to the overlays any more. */
  logEnds(): Promise<LogEnd[]>;
  close(): Promise<void>;
}

export interface EpochStoreOptions {
  readonly directory: StateDirectory;
  /** The secondary disks, in the metadata's order. */
  readonly disks: readonly BlockDevice[];
  /** false: never wait for the disk. */
  readonly sync: boolean;
  /** Default: the system's. */
  readonly clock?: Clock;
  /** The epoch whose before-images are kept when it is over, or null. */
  readonly salvage: () => number | null;
}

export class EpochStore {
  readonly #options: EpochStoreOptions;
  /** Of an epoch that may begin: making it waits for the file system's journal, which under load takes long. */
  #prepared: { readonly number: number; readonly log: OverlayLog } | null = null;
  /** Whether a log is being made, from the spare one if there is any. */
  #isMaking = false;
  /** Logs that failed: what failed once, a bad sector of theirs, would fail each epoch that is made from them. */
  readonly #failed = new Set<string>();
  /** Whatever makes, takes or removes a spare log. */
  readonly #spares = new Serial();

  constructor(options: EpochStoreOptions) {
    this.#options = { ...options, directory: makingRoom(options.directory, () => this.#dropSpare()) };
  }

  /** Makes the log of a new epoch before it is needed. A crash leaves it empty, as one of a later epoch. */
  async prepare(number: number): Promise<void> {
    if (this.#prepared?.number === number) return;
    await this.discardPrepared();
    this.#prepared = { number, log: await this.#createLog(number) };
  }

  /** The epoch that was prepared does not begin. */
  async discardPrepared(): Promise<void> {
    const prepared = this.#prepared;
    this.#prepared = null;
    if (prepared === null) return;
    await prepared.log.close();
    await this.#options.directory.remove(hiddenName(prepared.number));
  }

  /**
   * Makes the files of a new epoch, empty and durable, unless they were prepared.
   * @param inForce what writes to the view wait for, so that none of them is lost with an epoch that never came to be
   */
  async create(number: number, inForce: Promise<void>): Promise<Epoch> {
    const log = await this.#takePrepared(number);
    const active = new ActiveFiles(this.#options, number, inForce, null);
    return this.#assemble(number, log, active);
  }

  /**
   * Takes back the epoch in force after a restart, and with it what a later one had begun to collect.
   * @param logEnds where the logs ended when the node stopped; empty after a crash
   * @throws MetadataError if a log is missing, damaged or shorter than it was
   */
  async recover(number: number, logEnds: readonly LogEnd[] = []): Promise<Epoch> {
    const { directory } = this.#options;
    const records: RecoveredRecord[] = [];
    const optionsOf = (name: string): LogOptions & { endBytes: number | undefined } => ({
      ...logOptions(this.#options, number),
      endBytes: logEnds.find((end) => end.name === name)?.endBytes,
    });
    const hidden = hiddenName(number);
    const log = await OverlayLog.recover(directory, hidden, optionsOf(hidden), (record) => {
      records.push(record);
    });
    const activeRecords: RecoveredRecord[] = [];
    const files = await directory.list();
    const active = activeName(number);
    const isThere = logEnds.some(({ name }) => name === active) || (await this.#wasMade(active, files));
    const activeLog = isThere
      ? await OverlayLog.recover(directory, active, optionsOf(active), (record) => {
          activeRecords.push(record);
        })
      : null;
    await this.#checkData(number, activeRecords, files);
    const epoch = this.#assemble(
      number,
      log,
      new ActiveFiles(this.#options, number, Promise.resolve(), activeLog),
    );
    for (const record of records) overlaysOf(epoch, record, log.name).hidden.restore(record);
    for (const record of activeRecords) overlaysOf(epoch, record, activeName(number)).active.restore(record);
    for (const later of epochsOf(files)) {
      if (later > number && (await this.#wasMade(hiddenName(later), files)))
        await this.#mergeLater(epoch, later);
    }
    await this.removeAllBut(number);
    return epoch;
  }

  /** Removes the files of every other epoch, but for before-images to be kept, which get another name, and the spare. */
  removeAllBut(number: number | null): Promise<void> {
    return this.#spares.run(() => this.#removeAllBut(number));
  }

  async #removeAllBut(number: number | null): Promise<void> {
    await this.discardPrepared();
    const { directory, salvage } = this.#options;
    const files = await directory.list();
    let hasSpare = files.includes(SPARE_NAME);
    for (const file of files) {
      const match = FILE_PATTERN.exec(file);
      if (match === null || Number(match[1]) === number) continue;
      const kept = salvage();
      if (kept !== null && file === hiddenName(kept)) await directory.rename(file, salvageName(kept));
      else if (number === null || hasSpare || !file.startsWith("hidden-") || this.#failed.has(file))
        await directory.remove(file);
      else {
        await directory.rename(file, SPARE_NAME);
        await directory.truncate(SPARE_NAME, SPARE_MAXIMUM_BYTES);
        hasSpare = true;
      }
    }
    this.#failed.clear();
    if (number === null) await directory.remove(SPARE_NAME);
  }

  async #takePrepared(number: number): Promise<OverlayLog> {
    if (this.#prepared?.number !== number) {
      await this.discardPrepared();
      return this.#createLog(number);
    }
    const { log } = this.#prepared;
    this.#prepared = null;
    return log;
  }

  #createLog(number: number): Promise<OverlayLog> {
    const { directory } = this.#options;
    const options = { ...logOptions(this.#options, number), spare: SPARE_NAME };
    return this.#spares.run(async () => {
      this.#isMaking = true;
      try {
        // A spare log needs no room, but what makes the epoch durable does: with none it would begin, and never count.
        if ((await directory.freeBytes()) < ROOM_BYTES) await directory.remove(SPARE_NAME);
        if ((await directory.freeBytes()) < ROOM_BYTES)
          throw new DeviceError("ENOSPC", `${directory.path} has no space left for a checkpoint: make room`);
        return await OverlayLog.create(directory, hiddenName(number), options);
      } finally {
        this.#isMaking = false;
      }
    });
  }

  /** On a full file system. @returns false if there is none, or it is becoming a log */
  async #dropSpare(): Promise<boolean> {
    const { directory } = this.#options;
    if (this.#isMaking) return false;
    return this.#spares.run(async () => {
      if (!(await directory.list()).includes(SPARE_NAME)) return false;
      await directory.remove(SPARE_NAME);
      return true;
    });
  }

  /** Whether there are overlay files, of whatever epoch; returns one's name. */
  async anyFile(): Promise<string | null> {
    return (await this.#options.directory.list()).find((file) => FILE_PATTERN.test(file)) ?? null;
  }

  /**
   * The content that the active log names was durable before the log named it.
   * @throws MetadataError if a data file is missing or shorter than that: the view would lack, or fail to read, what is said to be there
   */
  async #checkData(
    number: number,
    records: readonly RecoveredRecord[],
    files: readonly string[],
  ): Promise<void> {
    const { directory } = this.#options;
    const remedy = "restore it, or remove the directory, which costs a full copy";
    const ends = new Map<number, number>();
    for (const { disk, kind, offset, lengthBytes } of records) {
      if (kind !== "zero") ends.set(disk, Math.max(ends.get(disk) ?? 0, offset + lengthBytes));
    }
    for (const [disk, end] of ends) {
      const name = dataName(number, disk);
      const path = `${directory.path}/${name}`;
      const log = activeName(number);
      if (!files.includes(name))
        throw new MetadataError("missing", `${path} is missing although ${log} names its content: ${remedy}`);
      const file = await directory.open(name);
      const { sizeBytes } = file;
      await file.close();
      if (sizeBytes < end) {
        throw new MetadataError(
          "damaged",
          `${path} is damaged: it has ${sizeBytes} bytes and ${log} names its content up to ${end}: ${remedy}`,
        );
      }
    }
  }

  /** The log in force was durable before the metadata named it; any other may have been cut off in its making. */
  async #wasMade(name: string, files: readonly string[]): Promise<boolean> {
    return files.includes(name) && !(await OverlayLog.isUnborn(this.#options.directory, name));
  }

  #assemble(number: number, log: OverlayLog, files: ActiveFiles): Epoch {
    const overlays = this.#options.disks.map((disk, index): DiskOverlays => {
      const hidden = new HiddenOverlay(disk, log, index);
      return { hidden, active: new ActiveOverlay(hidden, { open: () => files.open(index) }, index) };
    });
    return {
      number,
      overlays,
      get undoBytes() {
        return log.sizeBytes;
      },
      get isBroken() {
        return log.isBroken;
      },
      breakCheckpoint: () => log.markBroken(),
      flush: async () => {
        for (const { active } of overlays) await active.flush();
      },
      logEnds: async () => {
        const ends: LogEnd[] = [];
        for (const each of [log, await files.log()]) {
          const endBytes = each?.endBytes ?? null;
          if (each !== null && endBytes !== null) ends.push({ name: each.name, endBytes });
        }
        return ends;
      },
      close: async () => {
        for (const { active } of overlays) await active.close();
        await files.close();
        await log.close();
        if (log.endBytes === null) this.#failed.add(log.name);
      },
    };
  }

  /** Before-images that a later epoch took first are this epoch's too: the blocks had not changed between. */
  async #mergeLater(epoch: Epoch, later: number): Promise<void> {
    const { directory } = this.#options;
    const records: RecoveredRecord[] = [];
    const options = logOptions(this.#options, later);
    const log = await OverlayLog.recover(directory, hiddenName(later), options, (record) => {
      records.push(record);
    });
    try {
      if (log.isBroken) await epoch.breakCheckpoint();
      for (const record of records) {
        const { hidden } = overlaysOf(epoch, record, log.name);
        for (const [start, end] of hidden.missing(record.offset, record.offset + record.lengthBytes)) {
          const data = record.kind === "data" ? Buffer.allocUnsafe(end - start) : null;
          if (data !== null) await log.read(record.position + start - record.offset, data);
          await hidden.keep([{ offset: start, lengthBytes: end - start, data }]);
        }
      }
    } finally {
      await log.close();
    }
  }
}

/** The active overlay's files, made when the first disk of the epoch needs them. */
class ActiveFiles {
  readonly #options: EpochStoreOptions;
  readonly #epoch: number;
  readonly #inForce: Promise<void>;
  readonly #recovered: boolean;
  #log: Promise<OverlayLog> | null;

  constructor(options: EpochStoreOptions, epoch: number, inForce: Promise<void>, log: OverlayLog | null) {
    this.#options = options;
    this.#epoch = epoch;
    this.#inForce = inForce;
    this.#recovered = log !== null;
    this.#log = log === null ? null : Promise.resolve(log);
  }

  async open(diskIndex: number): Promise<{ readonly file: StateFile; readonly log: OverlayLog }> {
    const { directory } = this.#options;
    await this.#inForce;
    const options = logOptions(this.#options, this.#epoch);
    this.#log ??= OverlayLog.create(directory, activeName(this.#epoch), options).catch((error: unknown) => {
      this.#log = null;
      throw error;
    });
    const log = await this.#log;
    const name = dataName(this.#epoch, diskIndex);
    const exists = this.#recovered && (await directory.list()).includes(name);
    return { log, file: exists ? await directory.open(name) : await directory.create(name) };
  }

  /** Null: no client has written to a view. */
  async log(): Promise<OverlayLog | null> {
    return this.#log;
  }

  async close(): Promise<void> {
    if (this.#log !== null) await (await this.#log).close();
  }
}

function logOptions({ sync, clock }: EpochStoreOptions, epoch: number): LogOptions {
  return clock === undefined ? { epoch, sync } : { epoch, sync, clock };
}

function hiddenName(epoch: number): string {
  return `hidden-${epoch}.log`;
}

function activeName(epoch: number): string {
  return `active-${epoch}.log`;
}

function dataName(epoch: number, disk: number): string {
  return `active-${epoch}-${disk}.data`;
}

function epochsOf(files: readonly string[]): number[] {
  const numbers = files
    .map((file) => Number(FILE_PATTERN.exec(file)?.[1]))
    .filter((number) => !Number.isNaN(number));
  return [...new Set(numbers)].sort((a, b) => a - b);
}

function overlaysOf(epoch: Epoch, record: LogRecord | RecoveredRecord, log: string): DiskOverlays {
  const overlays = epoch.overlays[record.disk];
  const end = record.offset + record.lengthBytes;
  if (overlays === undefined || end > overlays.hidden.info.sizeBytes) {
    throw new MetadataError(
      "damaged",
      `${log} names bytes ${record.offset} to ${end} of disk ${record.disk}, which has fewer`,
    );
  }
  return overlays;
}

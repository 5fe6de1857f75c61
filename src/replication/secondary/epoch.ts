/**
 * The overlays of an epoch and their files: one log of before-images for all disks, and, once a client writes to
 * the view, one log of allocations and a sparse data file for each disk.
 *
 * Invariants: files are named by their epoch; the metadata's epoch names those that count. Files of a later epoch
 * are there after a crash between a checkpoint's announcement and its durability: their before-images still count
 * for whatever the epoch in force has none of.
 */
import type { Clock } from "../../clock.js";
import type { BlockDevice } from "../../block/device.js";
import { ExtentMap } from "../../block/extent-map.js";
import { ActiveOverlay, recoverChange } from "../../block/overlay/active.js";
import { HiddenOverlay, recoverImage } from "../../block/overlay/hidden.js";
import { settleAll } from "../../block/settle-all.js";
import type { LogEnd } from "../../meta/metadata.js";
import { type LogOptions, OverlayLog } from "../../meta/overlay-log.js";
import { RECORD_HEADER_BYTES } from "../../meta/overlay-log-format.js";
import type { RecoveredRecord } from "../../meta/overlay-log-recovery.js";
import type { StateDirectory } from "../../meta/state-directory.js";
import { DeviceError, MetadataError } from "../../errors.js";
import { ActiveFiles } from "./active-files.js";
import { activeName, dataName, epochOf, epochsOf, hiddenName, isHidden } from "./epoch-files.js";
import { salvageName } from "./salvage.js";
import type { SpareLog } from "./spare-log.js";

/** More than metadata.json and its directory need. */
const ROOM_BYTES = 64 * 1024;

/** A sync for each image would be minutes for those of a busy minute. */
const MERGED_AT_A_TIME_BYTES = 4 * 1024 * 1024;

const BROKEN = "its before-images could not be kept; there is no rollback until the next one";

/** What recovery finds of one disk: entered at once, for the records of a long epoch would not fit into memory. */
class RecoveredDisk {
  readonly images = new ExtentMap();
  readonly changes = new ExtentMap();
  /** How long the data file has to be; 0: there need be none. */
  dataEnd = 0;

  change(record: RecoveredRecord): void {
    recoverChange(this.changes, record);
    if (record.kind !== "zero") this.dataEnd = Math.max(this.dataEnd, record.offset + record.lengthBytes);
  }
}

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
  /** Why the checkpoint can be neither shown nor gone back to, or null. */
  readonly lost: string | null;
  /** Gives up the checkpoint, for good and on stable storage. */
  breakCheckpoint(): Promise<void>;
  /**
   * Gives back the space of what counts for nothing once the checkpoint is given up: before-images, and what was written to the views.
   * @param isIdle as OverlayLog.letGo()
   */
  letGo(isIdle?: boolean): Promise<void>;
  /** Nothing is received any more: before-images that could not be made durable are not there after a restart either, from here on. */
  cutOff(): Promise<void>;
  /**
   * Nothing of it is shown any more in this life of the node, though before-images are kept on: it may not be what it has to be,
   * or not be taken for that after a restart.
   */
  distrust(reason: string): void;
  flush(): Promise<void>;
  /** Where each log ends, but for those that failed. Nothing is written to the overlays any more. */
  logEnds(): Promise<LogEnd[]>;
  close(): Promise<void>;
}

export interface EpochStoreOptions {
  readonly directory: StateDirectory;
  /** The secondary disks, in the metadata's order. */
  readonly disks: readonly BlockDevice[];
  /** Default: the system's. */
  readonly clock?: Clock;
  /** The epoch whose before-images are kept when it is over, or null. */
  readonly salvage: () => number | null;
  /** There are none in that epoch: called before its files go; default: nobody is told. */
  readonly nothingSalvaged?: (epoch: number) => Promise<void>;
  /** The same directory's. */
  readonly spare: SpareLog;
  /** Called when `lost` of an epoch becomes a reason; default: nobody is told. */
  readonly lost?: () => void;
}

export class EpochStore {
  readonly #options: EpochStoreOptions;
  /** Of an epoch that may begin: making it waits for the file system's journal, which under load takes long. */
  #prepared: { readonly number: number; readonly log: OverlayLog } | null = null;
  /** Logs that failed, none of which may become the spare: its bad sector would fail every epoch whose log is made of it. */
  readonly #failed = new Set<string>();

  constructor(options: EpochStoreOptions) {
    this.#options = options;
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
   * @param inForce resolves when the epoch is on record; writes to the view wait for it, lest they be lost with an epoch that never was
   */
  async create(number: number, inForce: () => Promise<void>): Promise<Epoch> {
    const log = await this.#takePrepared(number);
    const active = this.#activeFiles(number, inForce, null);
    return this.#assemble(number, log, active);
  }

  /**
   * Takes back the epoch in force after a restart, and with it what a later one had begun to collect.
   * @param logEnds where the logs ended when the node stopped; empty after a crash
   * @throws MetadataError if a log is missing, damaged or shorter than it was
   */
  async recover(number: number, logEnds: readonly LogEnd[] = []): Promise<Epoch> {
    const { directory } = this.#options;
    const found = this.#options.disks.map(() => new RecoveredDisk());
    const optionsOf = (name: string): LogOptions & { endBytes: number | undefined } => ({
      ...logOptions(this.#options, number),
      endBytes: logEnds.find((end) => end.name === name)?.endBytes,
    });
    const hidden = hiddenName(number);
    const log = await OverlayLog.recover(directory, hidden, optionsOf(hidden), (record) => {
      recoverImage(this.#diskOf(record, hidden, found).images, record);
    });
    const files = await directory.list();
    const active = activeName(number);
    // What was written over a checkpoint that is lost is lost with it, and its files may have been cut.
    const isThere =
      !log.isBroken && (logEnds.some(({ name }) => name === active) || (await this.#wasMade(active, files)));
    const activeLog = isThere
      ? await OverlayLog.recover(directory, active, optionsOf(active), (record) => {
          this.#diskOf(record, active, found).change(record);
        })
      : null;
    await this.#checkData(number, found, files);
    const epoch = this.#assemble(
      number,
      log,
      this.#activeFiles(number, () => Promise.resolve(), activeLog),
      found,
    );
    for (const later of epochsOf(files)) {
      if (later > number && (await this.#wasMade(hiddenName(later), files)))
        await this.#mergeLater(epoch, later);
    }
    // A crash may have come between the mark and this. What is to be kept for people is not for a rollback.
    if (epoch.isBroken && this.#options.salvage() !== number) await epoch.letGo(true);
    await this.removeAllBut(number);
    return epoch;
  }

  /** Removes the files of every other epoch, but for before-images to be kept, if there are any, which get another name, and the spare. */
  async removeAllBut(number: number | null): Promise<void> {
    await this.discardPrepared();
    const { directory, spare } = this.#options;
    for (const file of await directory.list()) {
      const epoch = epochOf(file);
      if (epoch === null || epoch === number) continue;
      if (file === hiddenName(epoch) && (await this.#isToBeKept(epoch)))
        await directory.rename(file, salvageName(epoch));
      else if (number === null || !isHidden(file) || this.#failed.has(file)) await directory.remove(file);
      else await spare.keep(file);
    }
    this.#failed.clear();
    if (number === null) await spare.remove();
  }

  /** An empty log would be taken for what was given up last, in place of one that has something. */
  async #isToBeKept(epoch: number): Promise<boolean> {
    const { directory, salvage, nothingSalvaged } = this.#options;
    if (salvage() !== epoch) return false;
    // One that is damaged is kept: who salvages it is told.
    const isEmpty = await OverlayLog.isEmpty(directory, hiddenName(epoch), epoch).catch(() => false);
    if (isEmpty) await nothingSalvaged?.(epoch);
    return !isEmpty;
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

  async #createLog(number: number): Promise<OverlayLog> {
    const { directory, spare } = this.#options;
    const hasRoom = async (): Promise<boolean> => (await directory.freeBytes()) >= ROOM_BYTES;
    // Made of the spare log it needs no room, but what makes the epoch durable does: without, it would begin and never count.
    if (!(await hasRoom())) await spare.makeRoom();
    if (!(await hasRoom()))
      throw new DeviceError("ENOSPC", `${directory.path} has no space left for a checkpoint: make room`);
    const options = { ...logOptions(this.#options, number), spare };
    return OverlayLog.create(directory, hiddenName(number), options);
  }

  /** Whether there are overlay files, of whatever epoch; returns one's name. */
  async anyFile(): Promise<string | null> {
    return (await this.#options.directory.list()).find((file) => epochOf(file) !== null) ?? null;
  }

  /**
   * The content that the active log names was durable before the log named it.
   * @throws MetadataError if a data file is missing or shorter than that: the view would lack, or fail to read, what is said to be there
   */
  async #checkData(number: number, found: readonly RecoveredDisk[], files: readonly string[]): Promise<void> {
    const { directory } = this.#options;
    for (const [disk, { dataEnd: end }] of found.entries()) {
      if (end === 0) continue;
      const name = dataName(number, disk);
      const path = `${directory.path}/${name}`;
      const log = activeName(number);
      if (!files.includes(name))
        throw new MetadataError("missing", `${path} is missing although ${log} names its content`);
      const file = await directory.open(name);
      const { sizeBytes } = file;
      await file.close();
      if (sizeBytes < end) {
        throw new MetadataError(
          "damaged",
          `${path} is damaged: it has ${sizeBytes} bytes and ${log} names its content up to ${end}`,
        );
      }
    }
  }

  /** The log in force was durable before the metadata named it; any other may have been cut off in its making. */
  async #wasMade(name: string, files: readonly string[]): Promise<boolean> {
    return files.includes(name) && !(await OverlayLog.isUnborn(this.#options.directory, name));
  }

  #activeFiles(number: number, inForce: () => Promise<void>, recovered: OverlayLog | null): ActiveFiles {
    const { directory, spare } = this.#options;
    return new ActiveFiles(directory, spare, logOptions(this.#options, number), inForce, recovered);
  }

  /** @param found what recovery found of each disk; none of a new epoch */
  #assemble(
    number: number,
    log: OverlayLog,
    files: ActiveFiles,
    found: readonly RecoveredDisk[] = [],
  ): Epoch {
    let distrust: string | null = null;
    const tell = (): void => this.#options.lost?.();
    const doubt = (reason: string): void => {
      const isNews = distrust === null;
      distrust ??= reason;
      for (const { hidden } of overlays) hidden.refuseReads(`the last checkpoint is lost: ${distrust}`);
      if (isNews) tell();
    };
    const overlays = this.#options.disks.map((disk, index): DiskOverlays => {
      const { images, changes } = found[index] ?? new RecoveredDisk();
      const hidden = new HiddenOverlay(disk, log, index, images);
      const storage = {
        open: () => files.open(index),
        extend: (lengthBytes: number, change: () => Promise<unknown>) => files.extend(lengthBytes, change),
        lost: (): void => {
          doubt(
            "what clients wrote to the view may be gone; started anew, the node has what they had flushed",
          );
        },
      };
      return { hidden, active: new ActiveOverlay(hidden, storage, index, changes) };
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
      get lost() {
        if (log.isBroken) return BROKEN;
        return distrust;
      },
      breakCheckpoint: async () => {
        await log.markBroken();
        tell();
      },
      letGo: async (isIdle) => {
        const activeLetGo = async (): Promise<void> => {
          await settleAll(
            overlays.map(({ active }) => active.giveUp(`the last checkpoint is lost: ${BROKEN}`)),
          );
          await files.letGo();
        };
        await settleAll([log.letGo(isIdle), activeLetGo()]);
      },
      cutOff: () => log.cutOff(),
      distrust: doubt,
      flush: async () => {
        if (log.isBroken) return;
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
        if (log.hasFailed) this.#failed.add(log.name);
      },
    };
  }

  /** What `all` has of a record's disk. @throws MetadataError if it names bytes that no disk has */
  #diskOf<T>({ disk, offset, lengthBytes }: RecoveredRecord, log: string, all: readonly T[]): T {
    const device = this.#options.disks[disk];
    const own = all[disk];
    const end = offset + lengthBytes;
    if (own === undefined || device === undefined || end > device.info.sizeBytes) {
      throw new MetadataError(
        "damaged",
        `${log} names bytes ${offset} to ${end} of disk ${disk}, which has fewer`,
      );
    }
    return own;
  }

  /** Before-images that a later epoch took first are this epoch's too: the blocks had not changed between. */
  async #mergeLater(epoch: Epoch, later: number): Promise<void> {
    const { directory } = this.#options;
    const name = hiddenName(later);
    let stagedBytes = 0;
    const commit = async (): Promise<void> => {
      stagedBytes = 0;
      for (const { hidden } of epoch.overlays) await hidden.commit(false);
    };
    const log = await OverlayLog.recover(
      directory,
      name,
      logOptions(this.#options, later),
      ({ offset, lengthBytes, ...record }, data) => {
        const { hidden } = this.#diskOf({ offset, lengthBytes, ...record }, name, epoch.overlays);
        for (const [start, end] of hidden.missing(offset, offset + lengthBytes)) {
          const image = data === null ? null : Buffer.from(data.subarray(start - offset, end - offset));
          hidden.stage({ offset: start, lengthBytes: end - start, data: image });
          stagedBytes += RECORD_HEADER_BYTES + (image?.length ?? 0);
        }
        return stagedBytes < MERGED_AT_A_TIME_BYTES ? null : commit();
      },
    );
    try {
      await commit();
      if (log.isBroken) await epoch.breakCheckpoint();
    } finally {
      await log.close();
    }
  }
}

function logOptions({ clock }: EpochStoreOptions, epoch: number): LogOptions {
  return { epoch, sync: true, ...(clock !== undefined && { clock }) };
}

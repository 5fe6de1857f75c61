/** A disk in memory under copy-before-write, each part of it open to holds, failures and looks inside. */
import { systemClock } from "../../../src/clock.js";
import {
  CopyBeforeWrite,
  type CopyBeforeWriteOptions,
} from "../../../src/block/filters/copy-before-write.js";
import { MemoryBudget } from "../../../src/block/memory-budget.js";
import { HiddenOverlay } from "../../../src/block/overlay/hidden.js";
import { Deferred } from "../../../src/deferred.js";
import { OverlayLog } from "../../../src/meta/overlay-log.js";
import type { RecoveredRecord } from "../../../src/meta/overlay-log-recovery.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice, type MemoryDeviceOptions } from "../../tools/memory-device.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";

export const BLOCK_BYTES = 4096;
const LOG = "hidden.log";

export interface CopyingDiskOptions extends MemoryDeviceOptions {
  readonly sizeBytes?: number;
  readonly memoryBytes?: number;
  readonly onImageError?: CopyBeforeWriteOptions["onImageError"];
}

export class CopyingDisk {
  readonly memory: MemoryDevice;
  readonly disk: FailingDevice;
  readonly budget: MemoryBudget;
  readonly directory: MemoryStateDirectory;
  readonly copying: CopyBeforeWrite;
  readonly log: OverlayLog;
  readonly hidden: HiddenOverlay;
  /** What was reported to onError: operation and offset. */
  readonly errors: string[] = [];

  private constructor(options: CopyingDiskOptions, directory: MemoryStateDirectory, log: OverlayLog) {
    this.memory = new MemoryDevice(options.sizeBytes ?? 64 * BLOCK_BYTES, options);
    this.disk = new FailingDevice(this.memory);
    this.budget = new MemoryBudget(options.memoryBytes ?? 1024 * 1024);
    this.directory = directory;
    this.log = log;
    this.hidden = new HiddenOverlay(this.disk, log, 0);
    this.copying = new CopyBeforeWrite(this.disk, {
      clock: systemClock,
      memory: this.budget,
      onImageError: options.onImageError ?? (({ error }): Promise<void> => Promise.reject(error)),
      onError: ({ operation, offset }) => this.errors.push(`${operation} at ${offset}`),
    });
    this.copying.setOverlay(this.hidden);
  }

  static async make(options: CopyingDiskOptions = {}): Promise<CopyingDisk> {
    const directory = new MemoryStateDirectory();
    const log = await OverlayLog.create(directory, LOG, { epoch: 1, sync: true });
    directory.log.length = 0;
    return new CopyingDisk(options, directory, log);
  }

  /** Keeps the log's syncs from ending until the result is resolved or rejected. */
  holdLog(): Deferred<void> {
    const held = new Deferred<void>();
    this.directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "sync" ? held.promise : undefined;
    return held;
  }

  failLog(error: Error): void {
    this.directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "write" ? Promise.reject(error) : undefined;
  }

  /** The before-images in the log: what kind, from where to where. */
  async images(): Promise<string[]> {
    const images: string[] = [];
    const visit = ({ kind, offset, lengthBytes }: RecoveredRecord): void => {
      images.push(`${kind} ${offset / BLOCK_BYTES}-${(offset + lengthBytes) / BLOCK_BYTES}`);
    };
    await (await OverlayLog.recover(this.directory, LOG, { epoch: 1, sync: false }, visit)).close();
    return images;
  }

  /** What the disk held when the epoch began, read through the overlay. */
  async checkpoint(): Promise<Buffer> {
    const content = Buffer.alloc(this.memory.info.sizeBytes);
    await this.hidden.read(0, content);
    return content;
  }

  /** Changes of the disk itself, oldest first. */
  get changes(): string[] {
    return this.disk.log
      .filter(({ operation }) => ["write", "zero", "trim"].includes(operation))
      .map(({ operation, offset, lengthBytes }) => `${operation} ${offset}+${lengthBytes}`);
  }
}

export function filled(lengthBytes: number, value: number): Buffer {
  return Buffer.alloc(lengthBytes, value);
}

/**
 * What a secondary makes of failing disks and of before-images that can't be kept: policy, record, log.
 *
 * Invariant: a write that may be missing is told to the writer tracker before anything else can rely on the disks.
 */
import type { Logger } from "pino";
import type { UndoErrorPolicy } from "../../config/schema.js";
import type { RangeFailure, RequestFailure } from "../../block/failure.js";
import { describeError, errnoOf } from "../../errors.js";
import type { SwallowedError } from "../../status.js";
import type { Epoch } from "./epoch.js";
import { ErrorRecord } from "../error-record.js";
import type { WriterTracker } from "./writer-tracker.js";

export interface IoTroubleParts {
  readonly policy: UndoErrorPolicy;
  /** The overlays in use, if there are any. */
  readonly overlays: () => Epoch | null;
  /** Whether the before-images of this epoch are all that is left of what the node gives up. */
  readonly isSalvage: (epoch: number) => boolean;
  readonly tracker: WriterTracker;
  /** An error was swallowed. */
  readonly onError: () => void;
  readonly log: Logger;
}

export class IoTrouble {
  readonly #parts: IoTroubleParts;
  readonly #record = new ErrorRecord();
  /** The checkpoint that is being given up; all writes that lost their images to the same failure of the log wait for it. */
  #givingUp: { readonly overlays: Epoch; readonly done: Promise<void> } | null = null;

  constructor(parts: IoTroubleParts) {
    this.#parts = parts;
  }

  get error(): SwallowedError | null {
    return this.#record.get();
  }

  /** Resolves to go on without the checkpoint, rejects to refuse the write. */
  async imageLost(disk: string, failure: RangeFailure): Promise<void> {
    const { policy, isSalvage } = this.#parts;
    const overlays = this.#parts.overlays();
    if (policy === "break-replication" || overlays === null || isSalvage(overlays.number))
      throw failure.error;
    if (overlays.isBroken) return;
    if (this.#givingUp?.overlays !== overlays) {
      const done = this.#giveUp(overlays, disk, failure).finally(() => {
        if (this.#givingUp?.done === done) this.#givingUp = null;
      });
      this.#givingUp = { overlays, done };
    }
    await this.#givingUp.done;
  }

  async #giveUp(overlays: Epoch, disk: string, cause: RangeFailure): Promise<void> {
    try {
      await overlays.breakCheckpoint();
    } catch (failure) {
      // The mark may be there all the same, and then counts after a restart.
      overlays.distrust(
        "its before-images could not be kept, nor could that be recorded; started anew, the node tells whether it is there",
      );
      throw failure;
    }
    const { log } = this.#parts;
    const viewBytes = overlays.overlays.reduce((sum, { active }) => sum + active.mappedBytes, 0);
    const what = { epoch: overlays.number, viewBytes, ...fields(disk, cause) };
    log.error(what, "checkpoint lost: no rollback until the next checkpoint");
    await overlays.letGo().catch((failure: unknown) => {
      log.warn({ error: describeError(failure) }, "the space of the lost checkpoint could not be given back");
    });
    this.failed(disk, { ...cause, operation: "copy-before-write" });
  }

  failed(disk: string, failure: RequestFailure): void {
    const { tracker, onError, log } = this.#parts;
    const { operation, error } = failure;
    if (this.#record.add(disk, failure)) {
      log.error({ operation, ...fields(disk, failure) }, "I/O error on the secondary");
    }
    // Without before-images the replica is whole: the next checkpoint mends it.
    if (operation !== "copy-before-write") {
      tracker.writeFailed(`${operation} failed on the secondary: ${error.message}`);
    }
    onError();
  }

  /** All is well again, or was dropped. */
  clear(): void {
    this.#record.clear();
  }
}

/** Of the log. */
function fields(disk: string, { offset, lengthBytes, error }: RangeFailure): object {
  return { disk, offset, lengthBytes, errno: errnoOf(error), error: error.message };
}

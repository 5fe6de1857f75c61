/** What a secondary is made with. */
import type { Logger } from "pino";
import type { Clock } from "../../clock.js";
import type { UndoErrorPolicy } from "../../config/schema.js";
import type { StateDirectory } from "../../meta/state-directory.js";
import type { PrimarySettings } from "./promotion.js";
import type { SecondaryStart } from "../roles.js";
import type { FailedCheckpoint, LostRollback } from "../protocol.js";
import type { NamedDisk } from "../named-disk.js";
import type { Stage } from "../stage.js";

export interface SecondaryOptions extends SecondaryStart {
  readonly directory: StateDirectory;
  readonly disks: readonly NamedDisk[];
  readonly onUndoError: UndoErrorPolicy;
  /** How it replicates once it is promoted and takes a replica. */
  readonly asPrimary: PrimarySettings;
  readonly log: Logger;
  /** Default: the system's. */
  readonly clock?: Clock;
  readonly events: SecondaryEvents;
}

interface SecondaryEvents {
  /** The replication exports are to be closed: resolve when no request of theirs is in flight any more. */
  disconnectWriters(): Promise<void>;
  /** A checkpoint is durable here. */
  checkpointDurable(epoch: number): void;
  /** A checkpoint did not become durable here. */
  checkpointFailed(failed: FailedCheckpoint): void;
  /** The checkpoint in force can't be gone back to any more; told again to each primary that introduces itself. */
  rollbackLost(lost: LostRollback): void;
  stageChanged(stage: Stage): void;
  commitEnded(error: Error | null): void;
}

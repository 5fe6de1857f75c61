/** What a primary and its secondary say to each other beside the data: handshake, checkpoints, switch-over. By QMP. */
import { z } from "zod";
import { changesSummarySchema } from "./changes-summary.js";

/** Version of the handshake; a node refuses another's. */
export const HANDSHAKE_VERSION = 6;

/** Told by a secondary when a checkpoint is durable, with its epoch. */
export const CHECKPOINT_EVENT = "X_REPL_CHECKPOINT";

/** Told by a secondary when one is not, and won't be without somebody's help, with its epoch and the reason. */
export const CHECKPOINT_FAILED_EVENT = "X_REPL_CHECKPOINT_FAILED";

/** Told by a secondary that can't go back to its checkpoint any more, when that happens and at each handshake. */
export const ROLLBACK_LOST_EVENT = "X_REPL_ROLLBACK_LOST";

/** Arguments of `x-repl-handshake`. */
export const helloSchema = z.strictObject({
  version: z.int(),
  /** Names the primary, whichever life it is in. */
  primary: z.string().min(1).max(64),
  /** Names this handshake. */
  session: z.string().min(1).max(64),
  generation: z.uuid(),
  ancestors: z.array(z.uuid()).max(64),
  /**
   * The tenures that the primary's dirty maps tell of; none: one of them tells nothing of any replica. They are several
   * if the primary ended while it gave them a new one.
   */
  tenures: z.array(z.uuid()).max(64),
  /** What the primary believes this replica to lack, for people. */
  dirty: changesSummarySchema,
  epoch: z.int().nonnegative(),
  disks: z.array(z.strictObject({ name: z.string(), size: z.int().positive() })).min(1),
});

/** The answer to it. */
export const welcomeSchema = z.object({
  /** Whether the primary's dirty maps tell all that this replica lacks. */
  known: z.boolean(),
  /** Names the time from now on; to be stored with the dirty maps before anything is written. */
  tenure: z.uuid(),
  /** What the replica changed by itself when it was a primary: disk by disk, ranges of bytes. */
  changed: z.record(z.string(), z.array(z.tuple([z.int().nonnegative(), z.int().positive()]))),
  /**
   * Names what the replica has in memory: if it is the same as at the last handshake, the replica still has all that it acknowledged
   * since, durable or not.
   */
  memory: z.uuid(),
  /** For writerExport(); null: the exports are as they are for anybody. */
  writer: z.uuid().nullable(),
  epoch: z.int().nonnegative(),
  stage: z.string(),
});

export type Hello = z.output<typeof helloSchema>;
export type Welcome = z.output<typeof welcomeSchema>;

/**
 * The name by which a primary asks for the export of a disk after its handshake. A secret of the two: who knows it is the primary
 * that introduced itself, and nobody else writes.
 */
export function writerExport(exportName: string, writer: string): string {
  return `${exportName}@${writer}`;
}

/** A checkpoint that a replica can't go back to. */
export interface LostRollback {
  /** The epoch that the checkpoint began. */
  readonly epoch: number;
  /** One line for people. */
  readonly reason: string;
}

/** A checkpoint that did not become durable on a replica. */
export interface FailedCheckpoint {
  /** The epoch that it began. */
  readonly epoch: number;
  /** One line for people, with what to do. */
  readonly reason: string;
}

/** Code of the answer of a secondary that began to take over, and failed. */
export const TAKE_OVER_FAILED = "take-over-failed";

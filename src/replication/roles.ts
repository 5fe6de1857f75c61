/**
 * What a state directory means to a node that is started on it in the other role (docs/adr/0001): a primary comes back as the
 * secondary of the node that took over, a promoted secondary goes on as a primary.
 */
import { StateError } from "../errors.js";
import {
  type NodeMetadata,
  type PrimaryMetadata,
  type SecondaryMetadata,
  UNTOUCHED_SECONDARY,
} from "../meta/metadata.js";
import { resumedStage } from "./stage.js";

/** What an operator has decided for one start of a secondary. */
export interface SecondaryStart {
  /** What only this node has may be given up. */
  readonly discardLocalChanges: boolean;
  /** If it was promoted, it is a secondary again. */
  readonly demote: boolean;
}

/** @throws StateError if a failover is under way */
export function asSecondary(
  metadata: NodeMetadata,
  { discardLocalChanges: discard, demote }: SecondaryStart,
): SecondaryMetadata {
  if (metadata.role === "primary") return { ...comingBack(metadata, null), discard };
  if (!discard && !demote) return metadata;
  if (metadata.stage === "done") return { ...comingBack(metadata, null), discard };
  if (resumedStage(metadata).startsWith("failover")) {
    throw new StateError(
      "failing-over",
      `the failover of this node is not over: start it without ${demote ? "--demote" : "--discard-local-changes"}, to finish it`,
    );
  }
  return discard ? { ...metadata, discard } : metadata;
}

/**
 * A node that was a primary, as the secondary of another that took over.
 * @param tenure of its dirty maps
 */
export function comingBack(metadata: NodeMetadata, tenure: string | null): SecondaryMetadata {
  const { generation } = metadata;
  return { ...common(metadata), generation, ...UNTOUCHED_SECONDARY, tenure, returning: true };
}

/** As comingBack(), of a node whose disks the other one took over: it must not be a primary with them again. */
export function handedOver(metadata: NodeMetadata, tenure: string | null): SecondaryMetadata {
  return { ...comingBack(metadata, tenure), handedOver: true };
}

/**
 * Whether a node that came back as a secondary has its own data, as when it was a primary: nothing was written to it since. Whoever
 * writes begins an epoch or puts `mixed` on record first.
 */
export function hasOwnData({ stage, returning, copying, mixed, handedOver }: SecondaryMetadata): boolean {
  return stage === "none" && returning && !copying && mixed === null && !handedOver;
}

/**
 * How a secondary without an epoch is promoted with what its disks hold.
 * @param isStopping whether replication was being stopped, and could not be
 */
export function promotionRemedy({ copying }: SecondaryMetadata, isStopping = false): string {
  const first = isStopping ? "finish the stop and " : copying ? "give that copy up and " : "";
  const how = isStopping || copying ? "enable: false, then true" : "enable: true";
  return `to take the disks as they are, ${first}start replication (QMP xen-set-replication, ${how}, primary: false), then fail over (repl-secondary failover --to latest)`;
}

/**
 * A secondary that was promoted, or came back and has its own data still: its dirty maps go on telling what its replica lacks.
 * @throws StateError if it is another secondary's
 */
export function asPrimary(metadata: NodeMetadata, path: string): PrimaryMetadata {
  if (metadata.role === "primary") return metadata;
  const { generation, stage } = metadata;
  if (resumedStage(metadata) === "failover") {
    throw new StateError(
      "other-role",
      `${path} belongs to a secondary whose failover is not over: start repl-secondary, which finishes it, or give another --state-dir`,
    );
  }
  if (generation === null || (stage !== "done" && !hasOwnData(metadata))) {
    const what = metadata.handedOver
      ? "a node that handed its disks over to another one: start it as the secondary of that"
      : "a secondary that was not promoted";
    const remedy = stage === "none" ? ` (${promotionRemedy(metadata)})` : " (repl-secondary failover)";
    const or = metadata.handedOver ? ", or if that is lost, fail over first" : ": fail over first";
    throw new StateError(
      "other-role",
      `${path} belongs to ${what}${or}${remedy}, or give another --state-dir`,
    );
  }
  return { ...common(metadata), generation, role: "primary" };
}

function common(metadata: NodeMetadata): Omit<PrimaryMetadata, "role" | "generation"> {
  const { format, version, uuid, ancestors, replicaGeneration, epoch, disks, cleanShutdown } = metadata;
  return { format, version, uuid, ancestors, replicaGeneration, epoch, disks, cleanShutdown };
}

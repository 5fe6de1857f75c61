/**
 * What a state directory means to a node that is started on it in the other role (docs/adr/0001): a primary comes back as the
 * secondary of the node that took over, a promoted secondary goes on as a primary.
 */
import { MetadataError, StateError } from "../errors.js";
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

/** @throws MetadataError if it is a secondary's that was not promoted */
export function asPrimary(metadata: NodeMetadata, path: string): PrimaryMetadata {
  if (metadata.role === "primary") return metadata;
  const { generation, stage } = metadata;
  if (stage !== "done" || generation === null) {
    throw new MetadataError(
      "other-role",
      `${path} belongs to a secondary that was not promoted: fail over first (repl-secondary failover), or give another --state-dir`,
    );
  }
  return { ...common(metadata), generation, role: "primary" };
}

function common(metadata: NodeMetadata): Omit<PrimaryMetadata, "role" | "generation"> {
  const { format, version, uuid, ancestors, replicaGeneration, epoch, disks, cleanShutdown } = metadata;
  return { format, version, uuid, ancestors, replicaGeneration, epoch, disks, cleanShutdown };
}

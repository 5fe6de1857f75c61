/** Whether a primary that introduces itself may write to a secondary: by their data's histories (docs/adr/0001). */
import { StateError } from "../errors.js";
import { formatSize } from "../config/units.js";
import { type Lineage, relationOf } from "./generation.js";

/** What a primary tells of itself. */
export interface Introduction extends Lineage {
  /** Names the primary, whichever life it is in. */
  readonly primary: string;
  /** Names this life. */
  readonly session: string;
  /** The tenure of its dirty maps. */
  readonly tenure: string | null;
  /** Bytes that it believes this replica to lack. */
  readonly dirty: number;
}

const REMEDY =
  "to give up what only the secondary has, start it once with --discard-local-changes, which saves it first";

/**
 * @param changedBytes what the secondary changed by itself and knows of; null: it knows of nothing
 * @throws StateError if writing would overwrite what only the secondary has
 */
export function refuseOtherHistory(
  secondary: Lineage,
  primary: Introduction,
  changedBytes: number | null,
): void {
  const relation = relationOf(secondary, primary);
  const generations = `the secondary's data is of generation ${short(secondary)}, the primary's of ${short(primary)}`;
  switch (relation) {
    case "none":
    case "same":
    case "behind":
      return;
    case "ahead":
      throw new StateError(
        "newer-data",
        `the secondary has newer data than the primary: ${generations}, which is older: start the primary's node as its secondary; ${REMEDY}`,
      );
    case "split-brain":
      throw new StateError(
        "split-brain",
        `split brain: both nodes changed since they were the same, the primary ${formatSize(primary.dirty)}${changedBytes === null ? "" : `, the secondary ${formatSize(changedBytes)}`} (${generations}): ${REMEDY}`,
      );
    case "unrelated":
      throw new StateError(
        "unrelated-data",
        `the secondary holds other data: ${generations}, and neither came from the other: ${REMEDY}`,
      );
  }
}

function short({ generation }: Lineage): string {
  return generation?.slice(0, 8) ?? "none";
}

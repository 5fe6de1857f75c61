/** Whether a primary that introduces itself may write to a secondary: by their data's histories (docs/adr/0001). */
import { asError, StateError } from "../../errors.js";
import { type ChangesSummary, describeChanges } from "../changes-summary.js";
import { type Lineage, relationOf } from "../generation.js";

/** What a primary tells of itself. */
export interface Introduction extends Lineage {
  /** Names the primary, whichever life it is in. */
  readonly primary: string;
  /** Names this handshake. */
  readonly session: string;
  /** The tenures of its dirty maps; none: they tell nothing. */
  readonly tenures: readonly string[];
  /** The highest number of an epoch that it knows of. */
  readonly epoch: number;
  /** What it believes this replica to lack. */
  readonly dirty: ChangesSummary;
}

/** What a secondary is to a primary that introduces itself. */
export interface AskedSecondary extends Lineage {
  /** Who is connected to its replication exports, or null. */
  readonly writer: string | null;
  /** The primary that was admitted last, in an earlier life of the node too, or null. */
  readonly primary: string | null;
  /** Whether that primary is connected, and told of a time, or asked for an epoch, that the one that asks knows nothing of. */
  readonly isOutdated: boolean;
  /** Whether what only it has may be given up. */
  readonly discard: boolean;
  /** What it changed by itself and knows of; null: it knows of nothing. */
  readonly changed: ChangesSummary | null;
}

/** Who introduced itself to a secondary. */
export class Introductions {
  #last: Introduction | null = null;
  #conflict: string | null = null;

  /** The one that was admitted last; null: none was in this life of the node. */
  get last(): Introduction | null {
    return this.#last;
  }

  /** Why the last one was refused for its data's history, or null. */
  get conflict(): string | null {
    return this.#conflict;
  }

  /** @throws StateError if another primary is connected, or the histories forbid it */
  admit(introduction: Introduction, secondary: AskedSecondary): void {
    const { writer, primary, isOutdated, discard, changed } = secondary;
    const isOther = introduction.primary !== primary;
    if (writer !== null && (isOther || isOutdated)) {
      const what = isOther ? "" : ", and this one may be an older copy of it";
      throw new StateError(
        "other-writer",
        `another primary replicates to the secondary, from ${writer}${what}: stop that first`,
      );
    }
    try {
      if (!discard) refuseOtherHistory(secondary, introduction, changed);
    } catch (error) {
      this.#conflict = asError(error).message;
      throw error;
    }
    this.#conflict = null;
  }

  /** It has been admitted, and whoever wrote before has been cut off. */
  admitted(introduction: Introduction): void {
    this.#last = introduction;
  }
}

const REMEDY =
  "to give up what only the secondary has, start it once with --discard-local-changes, which saves it first";

/**
 * @param changed what the secondary changed by itself and knows of; null: it knows of nothing
 * @throws StateError if writing would overwrite what only the secondary has
 */
function refuseOtherHistory(secondary: Lineage, primary: Introduction, changed: ChangesSummary | null): void {
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
        `split brain: both nodes changed since they were the same, the primary ${describeChanges(primary.dirty)}${changed === null ? "" : `; the secondary ${describeChanges(changed)}`} (${generations}): ${REMEDY}`,
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

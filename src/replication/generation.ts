/**
 * Lines of history: how the data of two nodes is related (docs/adr/0001; DRBD: generation identifiers). Pure: names in, a
 * relation out.
 */
import { randomUUID } from "node:crypto";

/** More than a pair changes roles between two handshakes; what is forgotten costs a question to the operator. */
const MAX_ANCESTORS = 16;

/** A line of history, and those it came from. */
export interface Lineage {
  /** null: data that nobody has written on purpose. */
  readonly generation: string | null;
  /** Newest first. */
  readonly ancestors: readonly string[];
}

/**
 * What a replica is to the one who wants to write to it:
 * - `none`: it has nothing that anybody would miss;
 * - `same`, `behind`: everything it has came from the same line, or from one that this line came from;
 * - `ahead`: its line came from the writer's: it has what the writer has not;
 * - `split-brain`: both changed since they were the same;
 * - `unrelated`: they never were the same.
 */
export type Relation = "none" | "same" | "behind" | "ahead" | "split-brain" | "unrelated";

export function relationOf(replica: Lineage, writer: Lineage): Relation {
  if (replica.generation === null) return "none";
  if (replica.generation === writer.generation) return "same";
  if (writer.ancestors.includes(replica.generation)) return "behind";
  if (writer.generation !== null && replica.ancestors.includes(writer.generation)) return "ahead";
  return replica.ancestors.some((ancestor) => writer.ancestors.includes(ancestor))
    ? "split-brain"
    : "unrelated";
}

/** A line of data that has nothing to do with any other. */
export function newLine(): { readonly generation: string; readonly ancestors: string[] } {
  return { generation: randomUUID(), ancestors: [] };
}

/** A new line that begins where the given one is now. */
export function branch({ generation, ancestors }: Lineage): {
  readonly generation: string;
  readonly ancestors: string[];
} {
  const known = generation === null ? [...ancestors] : [generation, ...ancestors];
  return { generation: randomUUID(), ancestors: known.slice(0, MAX_ANCESTORS) };
}

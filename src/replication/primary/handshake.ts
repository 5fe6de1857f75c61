/** A primary's handshake with its replica: what it says of itself, and what it makes of the answer before it writes anything. */
import { LinkError } from "../../errors.js";
import { summaryOf } from "../changes-summary.js";
import type { PrimaryDisk } from "./disk.js";
import { HANDSHAKE_VERSION, type Hello, type Welcome } from "../protocol.js";

/** Who shakes hands. */
export interface HandshakeOptions {
  readonly disks: readonly PrimaryDisk[];
  /** Names the primary, whichever life it is in. */
  readonly primary: string;
  /** The line of history of the data, as of now. */
  readonly lineage: () => { readonly generation: string; readonly ancestors: readonly string[] };
  /** The highest number of an epoch that this side knows of. */
  readonly epoch: () => number;
  readonly events: HandshakeEvents;
}

export interface HandshakeEvents {
  /** The secondary said in which epoch it is. */
  epochLearned(epoch: number): void;
  /**
   * The replica is not the one that the dirty maps told of.
   * @returns whether that one may have the present generation, so that this one gets another
   */
  otherReplica(): Promise<boolean>;
}

/** @param session names this handshake */
export function helloOf({ disks, primary, lineage, epoch }: HandshakeOptions, session: string): Hello {
  const { generation, ancestors } = lineage();
  return {
    version: HANDSHAKE_VERSION,
    primary,
    session,
    generation,
    ancestors: [...ancestors],
    tenures: tenuresOf(disks),
    dirty: summaryOf(disks.map(({ name, dirty }) => [name, dirty])),
    epoch: epoch(),
    disks: disks.map(({ name, local }) => ({ name, size: local.info.sizeBytes })),
  };
}

/** @throws LinkError "new-generation": the handshake is to be repeated */
export async function takeWelcome(
  { disks, events }: HandshakeOptions,
  { tenure, known, changed, epoch }: Welcome,
): Promise<void> {
  for (const { name, dirty } of disks) {
    for (const [offset, lengthBytes] of changed[name] ?? []) await dirty.markMissed(offset, lengthBytes);
    // Before anything is written: the replica takes the map's old name until then, in case its answer is lost.
    await dirty.describe(tenure, known);
  }
  if (!known && (await events.otherReplica())) {
    throw new LinkError("new-generation", "this replica is not the one before: a new generation begins");
  }
  // It goes on record with all the rest, which may be of a new disk: not before that is (Primary.newData).
  events.epochLearned(epoch);
}

/** The tenures that the maps tell of, each once; none if one of them tells nothing. */
function tenuresOf(disks: readonly PrimaryDisk[]): string[] {
  const tenures = new Set<string>();
  for (const { dirty } of disks) {
    if (dirty.tenure === null) return [];
    tenures.add(dirty.tenure);
  }
  return [...tenures];
}

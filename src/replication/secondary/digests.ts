/**
 * Answers a primary that compares its disks with the replica.
 *
 * Invariant: what is digested is what the node has acknowledged: reads go through the replication export, which waits
 * for writes that are in memory.
 */
import { withBuffer } from "../../block/buffer-pool.js";
import { settleAll } from "../../block/settle-all.js";
import { NegotiationError, StateError } from "../../errors.js";
import { type DigestRequest, digestsOf, MAX_DIGEST_BYTES, MAX_DIGESTS } from "../digest.js";
import type { SecondaryDisk } from "./disk.js";

/** What a node that is asked has to know. */
export interface DigestedNode {
  readonly disks: readonly SecondaryDisk[];
  readonly tracker: { readonly session: string | null };
  exportRefusal(): string | null;
}

/** @throws StateError "session-lost" if the one who asks is not the one who replicates to this node */
export async function answerDigests(node: DigestedNode, request: DigestRequest): Promise<string[][]> {
  const disk = checkRequest(node, request);
  const answers = request.ranges.map(({ offset, length }) =>
    withBuffer(length, async (content) => {
      await disk.replicationExport.read(offset, content);
      return digestsOf(content, request.block);
    }),
  );
  await settleAll(answers);
  return Promise.all(answers);
}

function checkRequest(
  node: DigestedNode,
  { session, disk: name, block, ranges }: DigestRequest,
): SecondaryDisk {
  const refusal = node.exportRefusal();
  if (refusal !== null) throw new StateError("promoted", refusal);
  if (node.tracker.session !== session) {
    throw new StateError(
      "session-lost",
      "the primary that asks does not replicate to the secondary now: verify again when its status says that it does",
    );
  }
  const disk = node.disks.find((candidate) => candidate.name === name);
  if (disk === undefined) throw new NegotiationError("no-such-disk", `the secondary has no disk ${name}`);
  let bytes = 0;
  let digests = 0;
  for (const { offset, length } of ranges) {
    bytes += length;
    digests += Math.ceil(length / block);
    if (offset + length > disk.disk.info.sizeBytes) {
      throw new NegotiationError(
        "bad-argument",
        `Parameter 'ranges': ${offset}+${length} is beyond the end of ${name}`,
      );
    }
  }
  if (bytes > MAX_DIGEST_BYTES || digests > MAX_DIGESTS) {
    throw new NegotiationError(
      "bad-argument",
      `Parameter 'ranges': at most ${MAX_DIGEST_BYTES} bytes and ${MAX_DIGESTS} digests at once`,
    );
  }
  return disk;
}

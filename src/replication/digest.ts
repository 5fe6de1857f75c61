/** Digests of ranges of a disk, so that two nodes can compare their content without sending it. */
import { createHash } from "node:crypto";
import { z } from "zod";

/** Digests of one command; 45 bytes each in the answer. */
export const MAX_DIGESTS = 4096;
/** Content that one command reads, and holds in memory. */
export const MAX_DIGEST_BYTES = 4 * 1024 * 1024;
export const MIN_DIGEST_BLOCK_BYTES = 4096;

/** Arguments of `x-repl-digest`: one digest for each `block` bytes of each range. */
export const digestRequestSchema = z.strictObject({
  /** Who asks: only whoever replicates to this node knows what it should hold. */
  session: z.string().min(1).max(64),
  disk: z.string(),
  block: z.int().min(MIN_DIGEST_BLOCK_BYTES).max(MAX_DIGEST_BYTES),
  ranges: z
    .array(
      z.strictObject({ offset: z.int().nonnegative(), length: z.int().positive().max(MAX_DIGEST_BYTES) }),
    )
    .min(1)
    .max(64),
});

/** Its answer: for each range the digests of its blocks, base64. */
export const digestAnswerSchema = z.object({ digests: z.array(z.array(z.string())) });

export type DigestRequest = z.output<typeof digestRequestSchema>;

/** SHA-256: of those in Node that can be trusted the fastest, 1.5 GB/s with the CPU's help (BLAKE2b: 0.8). */
export function digestsOf(content: Buffer, blockBytes: number): string[] {
  const digests: string[] = [];
  for (let at = 0; at < content.length; at += blockBytes) {
    digests.push(
      createHash("sha256")
        .update(content.subarray(at, at + blockBytes))
        .digest("base64"),
    );
  }
  return digests;
}

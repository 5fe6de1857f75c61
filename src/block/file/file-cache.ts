/** What the kernel's page cache shows of a disk file and the disk may lack. */
import { asError, describeError } from "../../errors.js";
import type { Libc } from "../../os/libc.js";
import { dataSync } from "./file-io.js";
import type { OpenFile } from "./file-open.js";

/**
 * Makes the kernel read the file from its disk again. Where writing back has failed, the page cache goes on showing what the disk
 * lacks, even to whoever opens the file anew, and no later fdatasync() tells of it. Content that is sent to a replica once more
 * would seem to be there already, and be lost with the next power cut. (fsync(2), "Errors"; https://lwn.net/Articles/752063/.)
 *
 * Not needed after a process that ended in order: its last flush had no error.
 *
 * @param warn is told what is lost, and if the kernel can't be made to forget it
 * @returns why what was acknowledged before the crash may be lost, if nobody was told of it yet; else null. Whoever wrote it may
 *   have outlived the crash, and is to be told at its next flush.
 */
export async function forgetCached(
  system: Libc | null,
  file: OpenFile,
  warn: ((message: string) => void) | undefined,
): Promise<Error | null> {
  let failure: Error | null = null;
  try {
    // The kernel drops only what need not be written any more.
    await dataSync(file);
  } catch (error) {
    failure = asError(error);
    warn?.(
      `disk ${file.path}: what was written before the crash may be lost, flushes fail until the node is started anew: ${describeError(error)}`,
    );
  }
  try {
    if (system === null) throw new Error("there is no koffi");
    await system.dropCached(file.fd);
  } catch (error) {
    warn?.(
      `disk ${file.path} may be shown with what a failed flush did not save (${describeError(error)}): if one has failed, start this host anew`,
    );
  }
  return failure;
}

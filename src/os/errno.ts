/** What a failed system call says. */
import { constants } from "node:os";

const UNSUPPORTED: ReadonlySet<number> = new Set([
  constants.errno.EOPNOTSUPP,
  constants.errno.ENOTSUP,
  constants.errno.ENOSYS,
  constants.errno.ENODEV,
]);

/** The errno, positive, of an error of Node's file calls or of a SystemCallError; 0 of any other. */
export function errnoNumber(error: unknown): number {
  if (!(error instanceof Error) || !("errno" in error) || typeof error.errno !== "number") return 0;
  return Math.abs(error.errno);
}

/** Whether the file system or the kernel lacks the call, as against failing at it. */
export function isUnsupported(error: unknown): boolean {
  return UNSUPPORTED.has(errnoNumber(error));
}

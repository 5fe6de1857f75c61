/** From the errno of a failed file call to what a block device may answer. */
import { constants } from "node:os";

import type { Errno } from "../../errors.js";
import { DeviceError, describeError } from "../../errors.js";

const ERRNOS: ReadonlyMap<number, Errno> = new Map([
  [constants.errno.ENOSPC, "ENOSPC"],
  [constants.errno.EDQUOT, "ENOSPC"],
  [constants.errno.EFBIG, "ENOSPC"],
  [constants.errno.EROFS, "EPERM"],
  [constants.errno.EACCES, "EPERM"],
  [constants.errno.EPERM, "EPERM"],
  [constants.errno.ENOMEM, "ENOMEM"],
]);

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

/** An error reply that names the file and the request. @param offset at which it failed, if that is known */
export function fileError(
  path: string,
  request: string,
  cause: unknown,
  offset: number | null = null,
): DeviceError {
  const errno = ERRNOS.get(errnoNumber(cause)) ?? "EIO";
  return new DeviceError(errno, `${path}: ${request} failed: ${describeError(cause)}`, { cause, offset });
}

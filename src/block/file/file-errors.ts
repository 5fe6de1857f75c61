/** From the errno of a failed file call to what a block device may answer. */
import { constants } from "node:os";

import type { Errno } from "../../errors.js";
import { DeviceError, describeError } from "../../errors.js";
import { errnoNumber } from "../../os/errno.js";

const ERRNOS: ReadonlyMap<number, Errno> = new Map([
  [constants.errno.ENOSPC, "ENOSPC"],
  [constants.errno.EDQUOT, "ENOSPC"],
  [constants.errno.EFBIG, "ENOSPC"],
  [constants.errno.EROFS, "EPERM"],
  [constants.errno.EACCES, "EPERM"],
  [constants.errno.EPERM, "EPERM"],
  [constants.errno.ENOMEM, "ENOMEM"],
]);

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

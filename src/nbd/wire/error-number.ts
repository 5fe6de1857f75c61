/**
 * Errnos as NBD numbers them, whatever the platform does.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#error-values
 */
import type { Errno } from "../../errors.js";

const NUMBER_OF: Readonly<Record<Errno, number>> = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
};

const ERRNO_OF = new Map<number, Errno>([
  [1, "EPERM"],
  [5, "EIO"],
  [12, "ENOMEM"],
  [22, "EINVAL"],
  [28, "ENOSPC"],
  [75, "EOVERFLOW"],
  [95, "ENOTSUP"],
  [108, "ESHUTDOWN"],
]);

export function errorNumberOf(errno: Errno): number {
  return NUMBER_OF[errno];
}

/** `number` is not 0; one that the document doesn't know counts as EINVAL, as it asks of clients. */
export function errnoOfNumber(number: number): Errno {
  return ERRNO_OF.get(number) ?? "EINVAL";
}

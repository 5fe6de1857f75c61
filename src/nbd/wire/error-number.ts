/**
 * Errnos as NBD numbers them, whatever the platform does.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#error-values
 */
import type { Errno } from "../../errors.js";

const EIO = 5;

const NUMBER_OF = new Map<Errno, number>([
  ["EPERM", 1],
  ["EIO", EIO],
  ["ENOMEM", 12],
  ["EINVAL", 22],
  ["ENOSPC", 28],
  ["EOVERFLOW", 75],
  ["ENOTSUP", 95],
  ["ESHUTDOWN", 108],
]);

const ERRNO_OF = new Map([...NUMBER_OF].map(([errno, number]) => [number, errno]));

/** EIO of one that the document doesn't know: devices are others' code, and 0 would be success. */
export function errorNumberOf(errno: Errno): number {
  return NUMBER_OF.get(errno) ?? EIO;
}

/** `number` is not 0; one that the document doesn't know counts as EINVAL, as it asks of clients. */
export function errnoOfNumber(number: number): Errno {
  return ERRNO_OF.get(number) ?? "EINVAL";
}

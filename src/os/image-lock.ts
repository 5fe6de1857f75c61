/**
 * The byte locks that QEMU puts on an image while it is open, so that QEMU and we keep off each other's disks.
 *
 * Each permission has a number. Whoever uses it has a shared lock on byte USED + number; whoever does not
 * want others to use it has one on byte UNSHARED + number. All take their locks first and look at the others'
 * then: of two who start at the same moment, at least one sees the other.
 * The numbers are in QEMU's block/file-posix.c (RAW_LOCK_*) and include/block/block-common.h (BLK_PERM_*).
 */
import { StateError } from "../errors.js";
import type { ForeignLock, Libc } from "./libc.js";
import { SystemCallError } from "./libc.js";

const USED = 100;
const UNSHARED = 200;

const Permission = { ConsistentRead: 0, Write: 1, Resize: 3 } as const;

interface Claim {
  readonly used: readonly number[];
  readonly unshared: readonly number[];
}

/** What QEMU claims for a guest's disk: nobody else may write it or change its size. */
const READER: Claim = {
  used: [Permission.ConsistentRead],
  unshared: [Permission.Write, Permission.Resize],
};
const WRITER: Claim = {
  used: [Permission.ConsistentRead, Permission.Write],
  unshared: READER.unshared,
};

/**
 * Locks an open image for as long as `fd` stays open.
 * @param system libc(); null: nothing is locked
 * @param fd open for reading at least
 * @returns whether it is locked; false where the system or the file system has no such locks
 * @throws StateError "disk-locked" when QEMU or another node uses the image in a way that excludes ours
 */
export function lockImage(
  system: Libc | null,
  fd: number,
  path: string,
  options: { readonly writable: boolean },
): boolean {
  if (system === null) return false;
  const claim = options.writable ? WRITER : READER;
  let inTheWay: ForeignLock | null;
  try {
    inTheWay = lockAll(system, fd, claim) ?? conflict(system, fd, claim);
  } catch (error) {
    // ENOLCK, EINVAL, ENOTSUP: this file system has no locks. QEMU goes on without, too.
    if (error instanceof SystemCallError) return false;
    throw error;
  }
  if (inTheWay === null) return true;
  const owner = inTheWay.pid === null ? "pid unknown" : `pid ${inTheWay.pid}`;
  throw new StateError("disk-locked", `${path} is in use by another process (${owner}): stop it first`);
}

function lockAll(system: Libc, fd: number, claim: Claim): ForeignLock | null {
  for (const offset of [...claim.used.map(usedByte), ...claim.unshared.map(unsharedByte)]) {
    const inTheWay = system.lockByteShared(fd, offset);
    if (inTheWay !== null) return inTheWay;
  }
  return null;
}

function conflict(system: Libc, fd: number, claim: Claim): ForeignLock | null {
  for (const offset of [...claim.used.map(unsharedByte), ...claim.unshared.map(usedByte)]) {
    const inTheWay = system.foreignLock(fd, offset);
    if (inTheWay !== null) return inTheWay;
  }
  return null;
}

function usedByte(permission: number): number {
  return USED + permission;
}

function unsharedByte(permission: number): number {
  return UNSHARED + permission;
}

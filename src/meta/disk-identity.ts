/** Whether a disk is the one that a state directory belongs to, as far as can be told from outside. */
import type { DiskIdentity } from "./metadata.js";

/** A file as its file system knows it; null for what has no such thing: block devices, exports of other servers. */
export interface FileIdentity {
  readonly inode: string;
  /** Since the epoch; decimal. */
  readonly modifiedNs: string;
}

export interface IdentifiableDisk {
  readonly name: string;
  readonly path: string;
  readonly device: { readonly info: { readonly sizeBytes: number } };
  /** null or absent: there is nothing to tell it by but its size. */
  readonly identify?: () => Promise<FileIdentity | null>;
}

/** @param isAtRest nobody writes to the disks any more: later changes are somebody else's */
export async function identifyDisks(
  disks: readonly IdentifiableDisk[],
  isAtRest: boolean,
): Promise<DiskIdentity[]> {
  return Promise.all(
    disks.map(async ({ name, device, identify }) => {
      const file = (await identify?.()) ?? null;
      const modifiedNs = isAtRest && file !== null ? file.modifiedNs : null;
      return { name, sizeBytes: device.info.sizeBytes, inode: file?.inode ?? null, modifiedNs };
    }),
  );
}

/**
 * The first disk that is not as the node left it, in words, or null. After a crash only another file is noticed, not
 * what was written to the same one.
 */
export function findForeignDisk(
  known: readonly DiskIdentity[],
  found: readonly DiskIdentity[],
  disks: readonly IdentifiableDisk[],
): string | null {
  for (const [index, disk] of disks.entries()) {
    const [before, now] = [known[index], found[index]];
    if (before === undefined || now === undefined) continue;
    const differs = (one: string | null, other: string | null): boolean =>
      one !== null && other !== null && one !== other;
    if (differs(before.inode, now.inode)) return `disk ${disk.name}: ${disk.path} is another file`;
    if (differs(before.modifiedNs, now.modifiedNs)) {
      return `disk ${disk.name}: ${disk.path} was written to while this node did not run`;
    }
  }
  return null;
}

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

/** A disk that is not as the node left it. */
export interface ForeignDisk {
  /** Whether it is another file, not the same one with other content. */
  readonly isOtherFile: boolean;
  /** In words. */
  readonly reason: string;
}

/**
 * The first disk that is another file, else the first that is not as the node left it, or null. After a crash only another file is
 * noticed, not what was written to the same one.
 */
export function findForeignDisk(
  known: readonly DiskIdentity[],
  found: readonly DiskIdentity[],
  disks: readonly IdentifiableDisk[],
): ForeignDisk | null {
  const differing = (member: "inode" | "modifiedNs"): IdentifiableDisk | undefined =>
    disks.find((_disk, index) => {
      const [before, now] = [known[index]?.[member] ?? null, found[index]?.[member] ?? null];
      return before !== null && now !== null && before !== now;
    });
  const other = differing("inode");
  if (other !== undefined)
    return { isOtherFile: true, reason: `disk ${other.name}: ${other.path} is another file` };
  const changed = differing("modifiedNs");
  if (changed === undefined) return null;
  const reason = `disk ${changed.name}: ${changed.path} was written to while this node did not run`;
  return { isOtherFile: false, reason };
}

/**
 * Whether a replica that had fallen silent takes content again. Not whatever lets a handshake through does: a path that loses large
 * packets (a tunnel of which nobody knows the MTU), a disk that hangs. Guests would wait for it anew with every connection.
 */
import { withBuffer } from "../../block/buffer-pool.js";
import { checked } from "../../block/checked.js";
import type { BlockDevice } from "../../block/device.js";
import { DIRTY_BLOCK_BYTES } from "../../block/dirty-blocks.js";
import type { PrimaryDisk } from "./disk.js";

/**
 * Resolves when each replica has a block durably that it lacks; at once if none lacks any. Guests wait for reading it alone. What they
 * change afterwards is not forwarded, so that the block counts as missed, whatever was known of it, and is sent again.
 * @param replicas of the disks, in their order
 * @throws DeviceError or LinkError if it can't be read or sent
 */
export async function tryOut(disks: readonly PrimaryDisk[], replicas: readonly BlockDevice[]): Promise<void> {
  for (const [index, disk] of disks.entries()) {
    const replica = replicas[index];
    if (replica !== undefined) await sendMissed(disk, checked(replica));
  }
}

async function sendMissed({ local, dirty, mirror }: PrimaryDisk, replica: BlockDevice): Promise<void> {
  const missed = dirty.nextMissed(0, DIRTY_BLOCK_BYTES);
  if (missed === null) return;
  const { offset, lengthBytes } = missed;
  await withBuffer(lengthBytes, async (content) => {
    // With no change to it under way: one may be on the replica already, and must not be taken back there.
    await mirror.exclusively(offset, lengthBytes, () => {
      dirty.missed(offset, lengthBytes);
      return local.read(offset, content);
    });
    await replica.write(offset, content, 0);
  });
  await replica.flush();
}

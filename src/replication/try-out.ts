/**
 * Whether a replica that had fallen silent takes content again. Not whatever lets a handshake through does: a path that loses large
 * packets (a tunnel of which nobody knows the MTU), a disk that hangs. Guests would wait for it anew with every connection.
 */
import { withBuffer } from "../block/buffer-pool.js";
import type { BlockDevice } from "../block/device.js";
import { DIRTY_BLOCK_BYTES } from "../block/dirty-blocks.js";
import type { PrimaryDisk } from "./primary-disk.js";

/**
 * Resolves when the replica has a block durably that it lacks; at once if it lacks none. Meanwhile guests may change the block, and their
 * changes are not forwarded: it counts as missed as before, and is sent again.
 * @throws DeviceError or LinkError if it can't be read or sent
 */
export async function tryOut({ local, dirty }: PrimaryDisk, replica: BlockDevice): Promise<void> {
  const missed = dirty.nextMissed(0, DIRTY_BLOCK_BYTES);
  if (missed === null) return;
  await withBuffer(missed.lengthBytes, async (content) => {
    await local.read(missed.offset, content);
    await replica.write(missed.offset, content, 0);
  });
  await replica.flush();
}

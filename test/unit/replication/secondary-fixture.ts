/** What the tests of a secondary begin with: a node on memory disks, each full of a byte of its own. */
import { expect } from "chai";

import type { UndoErrorPolicy } from "../../../src/config/schema.js";
import { type BlockDevice, Flag, type Flags } from "../../../src/block/device.js";
import { expectSame, readRange } from "../../contract/device-model.js";
import type { Introduction } from "../../../src/replication/secondary/introduction.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { failureOf } from "../../tools/outcome.js";
import { SecondaryNode } from "../../tools/secondary-node.js";

/** Not a multiple of anything: ends in the middle of a page. */
export const SIZE_BYTES = 256 * 1024 + 1234;
export const PAGE = 4096;

/** What disk `index` holds at first. */
export const OLD: readonly number[] = [0x11, 0x12, 0x13];

export interface Fixture {
  readonly node: SecondaryNode;
  readonly media: readonly MemoryDevice[];
}

/** A node in stage none. */
export async function openSecondary(
  options: { readonly disks?: number; readonly onUndoError?: UndoErrorPolicy } = {},
): Promise<Fixture> {
  const media = OLD.slice(0, options.disks ?? 1).map((byte) => {
    const medium = new MemoryDevice(SIZE_BYTES);
    medium.fill(0, Buffer.alloc(SIZE_BYTES, byte));
    return medium;
  });
  const { onUndoError } = options;
  const state = new MemoryStateDirectory();
  const node = await SecondaryNode.open({ media, state, ...(onUndoError !== undefined && { onUndoError }) });
  return { node, media };
}

/** Disk `index` as it was at first, with changes: [offset, length, byte] each. */
export function content(index: number, ...changes: readonly [number, number, number][]): Buffer {
  const expected = Buffer.alloc(SIZE_BYTES, OLD[index]);
  for (const [offset, lengthBytes, byte] of changes) expected.fill(byte, offset, offset + lengthBytes);
  return expected;
}

export function put(
  device: BlockDevice,
  offset: number,
  lengthBytes: number,
  byte: number,
  flags: Flags = Flag.None,
): Promise<void> {
  return device.write(offset, Buffer.alloc(lengthBytes, byte), flags);
}

/** Compares every byte of a device. */
export async function expectContent(device: BlockDevice, expected: Buffer, what = "content"): Promise<void> {
  expectSame(await readRange(device, 0, expected.length), expected, 0, what);
}

/** Compares every byte of a medium, past the node. */
export function expectMedium(medium: MemoryDevice | undefined, expected: Buffer, what = "disk"): void {
  if (medium === undefined) throw new RangeError("there is no such disk");
  expectSame(medium.contents(), expected, 0, what);
}

export async function expectFailure(request: Promise<unknown>, message: string | RegExp): Promise<void> {
  const { message: text } = await failureOf(request);
  if (typeof message === "string") expect(text).to.equal(message);
  else expect(text).to.match(message);
}

/** The line of history of the primary that introduce() plays. */
export const GENERATION = "2f1c9a60-53a1-4f0e-8a44-9a6f53f8b0aa";

/** As a primary of ours says hello. @param told what is different this time */
export function introduce(
  node: SecondaryNode,
  session: string,
  told: Partial<Introduction> = {},
): ReturnType<SecondaryNode["secondary"]["introduce"]> {
  return node.secondary.introduce({
    primary: "the primary",
    session,
    generation: GENERATION,
    ancestors: [],
    tenures: [],
    epoch: 0,
    dirty: { bytes: 0, first: [] },
    ...told,
  });
}

/** As a primary of ours takes a checkpoint; resolves when it is durable. */
export async function sessionCheckpoint(node: SecondaryNode, session: string): Promise<number> {
  const epoch = await node.secondary.checkpoint({ session, epoch: null });
  await node.secondary.checkpointDurable();
  return epoch;
}

/**
 * Metadata contexts: what NBD_CMD_BLOCK_STATUS can tell of an export.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#metadata-querying
 * A context to come is one more entry of metadataContexts().
 */
import type { BlockDevice, Extent } from "../../block/device.js";
import { BASE_ALLOCATION, BlockState } from "../wire/constants.js";
import type { BlockDescriptor } from "../wire/structured-reply.js";
import type { NbdExport } from "./exports.js";

export interface MetadataContext {
  /** Namespace, colon, leaf. */
  readonly name: string;
  /**
   * Describes the range from `offset` on: one descriptor or more, none empty, none past the range.
   * @throws DeviceError by rejection
   */
  describe(offset: number, lengthBytes: number, maxDescriptors: number): Promise<BlockDescriptor[]>;
}

/** A context that a client has selected. */
export interface SelectedContext {
  /** In BLOCK_STATUS chunks. */
  readonly id: number;
  readonly context: MetadataContext;
}

/** All that can be selected on an export; the place in the list is stable. */
function metadataContexts(e: NbdExport): MetadataContext[] {
  return [baseAllocation(e.device)];
}

/** Contexts that NBD_OPT_LIST_META_CONTEXT names: no query asks for all, `base:` for a whole namespace. */
export function listedContexts(e: NbdExport, queries: readonly string[]): MetadataContext[] {
  const contexts = metadataContexts(e);
  if (queries.length === 0) return contexts;
  return contexts.filter(({ name }) => queries.includes(name) || queries.includes(namespaceOf(name)));
}

/** Contexts that NBD_OPT_SET_META_CONTEXT selects: only whole names do. */
export function selectedContexts(e: NbdExport, queries: readonly string[]): SelectedContext[] {
  return metadataContexts(e)
    .map((context, index) => ({ id: index + 1, context }))
    .filter(({ context }) => queries.includes(context.name));
}

function namespaceOf(name: string): string {
  return name.slice(0, name.indexOf(":") + 1);
}

function baseAllocation(device: BlockDevice): MetadataContext {
  return {
    name: BASE_ALLOCATION,
    describe(offset, lengthBytes, maxDescriptors) {
      if (device.info.extents === "none") return Promise.resolve([{ lengthBytes, status: 0 }]);
      return device.extents(offset, lengthBytes, maxDescriptors).then(allocationDescriptors);
    },
  };
}

/** Neighbours of one status become one descriptor. */
function allocationDescriptors(extents: readonly Extent[]): BlockDescriptor[] {
  const descriptors: BlockDescriptor[] = [];
  for (const extent of extents) {
    const status = (extent.hole ? BlockState.Hole : 0) | (extent.zero ? BlockState.Zero : 0);
    const last = descriptors.at(-1);
    if (last?.status === status) {
      descriptors[descriptors.length - 1] = { lengthBytes: last.lengthBytes + extent.lengthBytes, status };
    } else {
      descriptors.push({ lengthBytes: extent.lengthBytes, status });
    }
  }
  return descriptors;
}

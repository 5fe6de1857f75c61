/**
 * Metadata contexts: what NBD_CMD_BLOCK_STATUS can tell of an export.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#metadata-querying
 * Other contexts than base:allocation come with the export.
 */
import type { BlockDevice, Extent } from "../../block/device.js";
import { BASE_ALLOCATION, BlockState } from "../wire/constants.js";
import type { BlockDescriptor } from "../wire/structured-reply.js";
import type { MetadataContext, NbdExport } from "./exports.js";

/** A context that a client has selected. */
export interface SelectedContext {
  /** In BLOCK_STATUS chunks. */
  readonly id: number;
  readonly context: MetadataContext;
}

/** All that can be selected on an export; the place in the list is stable. */
function metadataContexts(e: NbdExport): MetadataContext[] {
  return [baseAllocation(e.device), ...(e.contexts ?? [])];
}

/** Contexts that NBD_OPT_LIST_META_CONTEXT names: no query asks for all, `base:` or `qemu:dirty-bitmap:` for all that start so. */
export function listedContexts(e: NbdExport, queries: readonly string[]): MetadataContext[] {
  const contexts = metadataContexts(e);
  if (queries.length === 0) return contexts;
  return contexts.filter(({ name }) =>
    queries.some((query) => query === name || (query.endsWith(":") && name.startsWith(query))),
  );
}

/** Contexts that NBD_OPT_SET_META_CONTEXT selects: only whole names do. */
export function selectedContexts(e: NbdExport, queries: readonly string[]): SelectedContext[] {
  return metadataContexts(e)
    .map((context, index) => ({ id: index + 1, context }))
    .filter(({ context }) => queries.includes(context.name));
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

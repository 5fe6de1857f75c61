/** What a server tells of an export: transmission flags and size constraints. */
import type { BlockSize } from "../../block/device.js";
import { cappedBlockSize } from "../block-size.js";
import { TransmissionFlag } from "../wire/constants.js";
import type { Agreement } from "./agreement.js";
import type { NbdExport } from "./exports.js";

/** "Preferred block size ... at least as large as the maximum of the minimum block size and 2^9". */
const PREFERRED_BLOCK_MINIMUM_BYTES = 512;

function isReadOnly(e: NbdExport): boolean {
  return e.readOnly || !e.device.info.writable;
}

/**
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#transmission-flags
 * All connections share the device, so that a flush on one covers the writes of all (CAN_MULTI_CONN).
 */
export function transmissionFlagsOf(agreement: Agreement): number {
  const { export: e, structuredReplies, extendedHeaders, contexts } = agreement;
  const { trim, zero, fua, rotational } = e.device.info;
  let flags =
    TransmissionFlag.HasFlags |
    TransmissionFlag.SendFlush |
    TransmissionFlag.SendCache |
    TransmissionFlag.CanMultiConn;
  if (fua !== "none") flags |= TransmissionFlag.SendFua;
  if (rotational === true) flags |= TransmissionFlag.Rotational;
  if (structuredReplies) flags |= TransmissionFlag.SendDf;
  if (extendedHeaders && contexts.length > 0) flags |= TransmissionFlag.BlockStatusPayload;
  if (isReadOnly(e)) return flags | TransmissionFlag.ReadOnly;
  if (trim !== "none") flags |= TransmissionFlag.SendTrim;
  if (zero !== "none") flags |= TransmissionFlag.SendWriteZeroes | TransmissionFlag.SendFastZero;
  return flags;
}

/** https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#size-constraints */
export function blockSizeOf(e: NbdExport): BlockSize {
  const { minimumBytes, preferredBytes, maximumBytes } = e.device.info.blockSize;
  return cappedBlockSize({
    minimumBytes,
    preferredBytes: Math.max(preferredBytes, minimumBytes, PREFERRED_BLOCK_MINIMUM_BYTES),
    maximumBytes,
  });
}

/** Whether a client that did not ask for the constraints would run into them: without, any byte can be addressed. */
export function needsBlockSizeAgreement(e: NbdExport): boolean {
  return e.device.info.blockSize.minimumBytes > 1;
}

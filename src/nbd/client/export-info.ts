/**
 * What the handshake told of an export, judged and put in the terms of a block device.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#size-constraints
 */
import { isPowerOfTwo } from "../../block/block-size.js";
import type { BlockSize, DeviceInfo } from "../../block/device.js";
import { NegotiationError, ProtocolError } from "../../errors.js";
import { MINIMUM_BLOCK_LIMIT_BYTES, cappedBlockSize } from "../block-size.js";
import { BASE_ALLOCATION, PAYLOAD_MAXIMUM_BYTES, TransmissionFlag } from "../wire/constants.js";
import type { AdvertisedBlockSize } from "./ask-info.js";
import type { NegotiatedExport } from "./negotiate.js";

/** The document's defaults; also, a maximum that every server should take. */
const DEFAULT_BLOCK_SIZE: BlockSize = {
  minimumBytes: 1,
  preferredBytes: 4096,
  maximumBytes: PAYLOAD_MAXIMUM_BYTES,
};

/** What the server can do, beyond what DeviceInfo tells. */
export interface ExportAbilities {
  readonly flush: boolean;
  readonly fua: boolean;
  readonly fastZero: boolean;
  readonly multiConn: boolean;
  readonly rotational: boolean;
  /** Requests have extended headers: lengths of 64 bits, and a flag on what has a payload. */
  readonly extendedHeaders: boolean;
  readonly cache: boolean;
  readonly structuredReplies: boolean;
  /** The content of a read comes in one piece if asked for (NBD_FLAG_SEND_DF); without structured replies it always does. */
  readonly dontFragment: boolean;
  /** A BLOCK_STATUS may name the contexts to tell of (NBD_FLAG_BLOCK_STATUS_PAYLOAD). */
  readonly statusFilter: boolean;
  /** The selected metadata contexts, with the server's numbers for them. */
  readonly contexts: ReadonlyMap<string, number>;
}

/**
 * @throws NegotiationError size-too-large: the export is larger than any device of ours can be
 * @throws ProtocolError bad-block-size
 */
export function deviceInfo(
  negotiated: Pick<NegotiatedExport, "geometry" | "blockSize" | "contexts">,
): DeviceInfo {
  const { sizeBytes, transmissionFlags } = negotiated.geometry;
  if (!Number.isSafeInteger(sizeBytes)) {
    throw new NegotiationError("size-too-large", "the export is larger than 2^53 bytes");
  }
  const has = (flag: number): boolean => (transmissionFlags & flag) !== 0;
  return Object.freeze({
    sizeBytes,
    blockSize: Object.freeze(judgeBlockSize(negotiated.blockSize)),
    writable: !has(TransmissionFlag.ReadOnly),
    trim: has(TransmissionFlag.SendTrim) ? "native" : "none",
    zero: has(TransmissionFlag.SendWriteZeroes) ? "native" : "none",
    fua: has(TransmissionFlag.SendFua) ? "native" : "emulated",
    extents: negotiated.contexts.has(BASE_ALLOCATION) ? "native" : "none",
  });
}

export function exportAbilities({
  geometry,
  structuredReplies,
  extendedHeaders,
  contexts,
}: Omit<NegotiatedExport, "blockSize">): ExportAbilities {
  const { transmissionFlags } = geometry;
  const has = (flag: number): boolean => (transmissionFlags & flag) !== 0;
  return {
    flush: has(TransmissionFlag.SendFlush),
    fua: has(TransmissionFlag.SendFua),
    fastZero: has(TransmissionFlag.SendWriteZeroes) && has(TransmissionFlag.SendFastZero),
    multiConn: has(TransmissionFlag.CanMultiConn),
    rotational: has(TransmissionFlag.Rotational),
    extendedHeaders,
    cache: has(TransmissionFlag.SendCache),
    structuredReplies,
    dontFragment: has(TransmissionFlag.SendDf),
    statusFilter: extendedHeaders && has(TransmissionFlag.BlockStatusPayload),
    contexts,
  };
}

function judgeBlockSize(advertised: AdvertisedBlockSize | null): BlockSize {
  if (advertised === null) return DEFAULT_BLOCK_SIZE;
  const { minimumBytes, preferredBytes, maximumBytes } = advertised;
  const right =
    isPowerOfTwo(minimumBytes) &&
    minimumBytes <= MINIMUM_BLOCK_LIMIT_BYTES &&
    isPowerOfTwo(preferredBytes) &&
    preferredBytes >= minimumBytes &&
    maximumBytes >= preferredBytes;
  if (!right) {
    throw new ProtocolError(
      "bad-block-size",
      `the server's block sizes make no sense: minimum ${minimumBytes}, preferred ${preferredBytes}, maximum ${maximumBytes}`,
    );
  }
  // 2^32-1 stands for "no limit", but a peer may take more than the default for an attack.
  return cappedBlockSize(advertised);
}

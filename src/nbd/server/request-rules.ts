/**
 * Which requests reach the device, and the error that answers the others.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#request-types and #error-values
 */
import { DeviceError, type Errno } from "../../errors.js";
import { Command, CommandFlag, TransmissionFlag } from "../wire/constants.js";
import type { RequestHeader } from "../wire/request.js";
import { decodeStatusFilter, isStatusFilterLength } from "../wire/request.js";
import { STATUS_FILTER_BYTES } from "./limits.js";

/** What was agreed on for a connection. */
export interface RequestRules {
  readonly sizeBytes: number;
  readonly minimumBytes: number;
  /** Of the payload of one READ or WRITE. */
  readonly maximumPayloadBytes: number;
  /** As advertised. */
  readonly transmissionFlags: number;
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
  /** A metadata context was selected. */
  readonly hasContexts: boolean;
}

/** The answer to a request that is not carried out. */
export interface Refusal {
  readonly errno: Errno;
  /** For a person, in an error chunk. */
  readonly message: string;
}

const UNKNOWN_COMMAND: Refusal = { errno: "EINVAL", message: "unknown command" };
const WRONG_FLAG: Refusal = { errno: "EINVAL", message: "a flag that this command does not take" };
const NOT_ADVERTISED: Refusal = { errno: "EINVAL", message: "the export does not offer this command" };
const READ_ONLY: Refusal = { errno: "EPERM", message: "the export is read-only" };
const NO_CONTEXT: Refusal = { errno: "EINVAL", message: "no metadata context was selected for this export" };
const FLUSH_WITH_RANGE: Refusal = { errno: "EINVAL", message: "a flush has no offset and no length" };
const EMPTY_STATUS: Refusal = { errno: "EINVAL", message: "the length of a block status request is 0" };
const PAST_END: Refusal = { errno: "EINVAL", message: "the request goes past the end of the export" };
const WRITE_PAST_END: Refusal = { errno: "ENOSPC", message: "the request goes past the end of the export" };
const UNALIGNED: Refusal = {
  errno: "EINVAL",
  message: "the request is not aligned to the minimum block size",
};
const LONG_WRITE: Refusal = { errno: "EINVAL", message: "the payload is longer than the advertised maximum" };
// EOVERFLOW is for those who negotiated structured replies only.
const LONG_READ: Refusal = { errno: "EOVERFLOW", message: "the read is longer than the advertised maximum" };
const LONG_SIMPLE_READ: Refusal = { ...LONG_READ, errno: "EINVAL" };

const NO_PAYLOAD: Refusal = { errno: "EINVAL", message: "a write without the flag for its payload" };
const BAD_STATUS_PAYLOAD: Refusal = {
  errno: "EINVAL",
  message: "the payload is not a list of selected contexts",
};

/** Answers every request once the connection is being shut down, unless they are left unanswered. */
export const SHUTTING_DOWN: Refusal = { errno: "ESHUTDOWN", message: "the export is being closed" };

/** WRITE, TRIM, WRITE_ZEROES: what changes the content. */
export function isWriteLike(command: number): boolean {
  return command === Command.Write || command === Command.Trim || command === Command.WriteZeroes;
}

/** Null when the request may be carried out. NBD_CMD_DISC is not asked about. */
export function refusalOf(rules: RequestRules, request: RequestHeader): Refusal | null {
  const { type, flags } = request;
  if (type > Command.BlockStatus || type === Command.Disconnect) return UNKNOWN_COMMAND;
  // The plain request, by far the most frequent, needs no look at its flags.
  if (flags !== 0 && (flags & ~allowedFlags(rules, type)) !== 0) return WRONG_FLAG;
  if (rules.extendedHeaders && type === Command.Write && (flags & CommandFlag.PayloadLen) === 0) {
    return NO_PAYLOAD;
  }
  if (type === Command.Flush) {
    return request.offset === 0 && request.lengthBytes === 0 ? null : FLUSH_WITH_RANGE;
  }
  if (isWriteLike(type)) {
    if (isSet(rules, TransmissionFlag.ReadOnly)) return READ_ONLY;
    if (type === Command.Trim && !isSet(rules, TransmissionFlag.SendTrim)) return NOT_ADVERTISED;
    if (type === Command.WriteZeroes && !isSet(rules, TransmissionFlag.SendWriteZeroes))
      return NOT_ADVERTISED;
  }
  if (type === Command.BlockStatus) {
    if (!rules.hasContexts) return NO_CONTEXT;
    if ((flags & CommandFlag.PayloadLen) !== 0)
      return request.lengthBytes <= STATUS_FILTER_BYTES && isStatusFilterLength(request.lengthBytes)
        ? null
        : BAD_STATUS_PAYLOAD;
    if (request.lengthBytes === 0) return EMPTY_STATUS;
  }
  return rangeRefusal(rules, request);
}

/** What a BLOCK_STATUS with a payload asks for. */
export interface StatusQuery {
  readonly lengthBytes: number;
  readonly contextIds: readonly number[];
}

/** Reads the payload of a BLOCK_STATUS that refusalOf() let pass; the rest of its rules. */
export function statusQueryOf(
  rules: RequestRules,
  request: RequestHeader,
  payload: Buffer,
  selectedIds: readonly number[],
): StatusQuery | Refusal {
  const { lengthBytes, contextIds } = decodeStatusFilter(payload);
  if (lengthBytes === 0) return EMPTY_STATUS;
  const isDoubled = new Set(contextIds).size < contextIds.length;
  if (isDoubled || contextIds.some((id) => !selectedIds.includes(id))) return BAD_STATUS_PAYLOAD;
  return rangeRefusal(rules, { ...request, lengthBytes }) ?? { lengthBytes, contextIds };
}

function rangeRefusal(rules: RequestRules, request: RequestHeader): Refusal | null {
  const { type, offset, lengthBytes } = request;
  // UINT64_TOO_LARGE fails here; nothing is added up before, so nothing wraps.
  if (lengthBytes > rules.sizeBytes || offset > rules.sizeBytes - lengthBytes) {
    return type === Command.Write || type === Command.WriteZeroes ? WRITE_PAST_END : PAST_END;
  }
  if (lengthBytes > rules.maximumPayloadBytes) {
    if (type === Command.Write) return LONG_WRITE;
    if (type === Command.Read) return rules.structuredReplies ? LONG_READ : LONG_SIMPLE_READ;
  }
  const { minimumBytes } = rules;
  if (minimumBytes > 1) {
    const end = offset + lengthBytes;
    if (offset % minimumBytes !== 0 || (end % minimumBytes !== 0 && end !== rules.sizeBytes))
      return UNALIGNED;
  }
  return null;
}

/** FUA is valid on every command where it was advertised, also where it means nothing. */
function allowedFlags(rules: RequestRules, type: number): number {
  const anyCommand = isSet(rules, TransmissionFlag.SendFua) ? CommandFlag.Fua : 0;
  if (type === Command.Read && isSet(rules, TransmissionFlag.SendDf)) return anyCommand | CommandFlag.Df;
  if (type === Command.WriteZeroes) return anyCommand | CommandFlag.NoHole | CommandFlag.FastZero;
  if (type === Command.Write && rules.extendedHeaders) return anyCommand | CommandFlag.PayloadLen;
  if (type === Command.BlockStatus) {
    const filter = isSet(rules, TransmissionFlag.BlockStatusPayload) ? CommandFlag.PayloadLen : 0;
    return anyCommand | CommandFlag.ReqOne | filter;
  }
  return anyCommand;
}

function isSet(rules: RequestRules, flag: number): boolean {
  return (rules.transmissionFlags & flag) !== 0;
}

/**
 * The errno to send for one that a device gave: ENOTSUP and EOVERFLOW have one meaning each in NBD.
 */
export function errnoForWire(request: RequestHeader, errno: Errno): Errno {
  const isFastZero = request.type === Command.WriteZeroes && (request.flags & CommandFlag.FastZero) !== 0;
  if (errno === "EOVERFLOW" || (errno === "ENOTSUP" && !isFastZero)) return "EINVAL";
  return errno;
}

/**
 * Where the device failed, if it knows and the request covers it: layers may read and write around a request. Devices are others' code, in
 * which it may be a bigint.
 */
export function offsetWithin({ offset, lengthBytes }: RequestHeader, error: unknown): number | null {
  const failedAt = error instanceof DeviceError ? error.offset : null;
  if (failedAt === null || !Number.isSafeInteger(failedAt)) return null;
  return failedAt >= offset && failedAt < offset + lengthBytes ? failedAt : null;
}

/**
 * One option and its replies: the step that option haggling consists of.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#fixed-newstyle-negotiation
 */
import { NegotiationError, ProtocolError } from "../../errors.js";
import { OPTION_REPLY_ERROR_BIT, OptionReplyType } from "../wire/constants.js";
import { encodeOption } from "../wire/option.js";
import { OPTION_REPLY_HEADER_BYTES, decodeOptionReplyHeader } from "../wire/option-reply.js";
import { decodeString } from "../wire/strings.js";
import { OPTION_REPLY_MAXIMUM_BYTES } from "./handshake-channel.js";
import type { HandshakeChannel } from "./handshake-channel.js";
import { printable } from "./server-text.js";

/** The most replies to one option, and so the most exports that can be listed. */
const OPTION_REPLIES_MAXIMUM = 65536;

/** An error reply to an option. */
export interface Refusal {
  readonly type: number;
  /** The server's own words, perhaps none. */
  readonly text: string;
}

/** The code of a NegotiationError, and words for a server that has none. */
const REFUSALS = new Map<number, readonly [code: string, text: string]>([
  [OptionReplyType.ErrUnsup, ["unsupported", "it does not know the option"]],
  [OptionReplyType.ErrPolicy, ["policy", "its policy forbids it"]],
  [OptionReplyType.ErrInvalid, ["invalid", "it takes the option for malformed"]],
  [OptionReplyType.ErrPlatform, ["platform", "its platform can't do it"]],
  [OptionReplyType.ErrTlsReqd, ["tls-required", "it requires TLS: use nbds instead of nbd"]],
  [OptionReplyType.ErrUnknown, ["export-unknown", "it has no such export"]],
  [OptionReplyType.ErrShutdown, ["shutdown", "it is shutting down"]],
  [OptionReplyType.ErrBlockSizeReqd, ["block-size-required", "it wants its block size to be asked for"]],
  [OptionReplyType.ErrTooBig, ["too-big", "the request or its reply is too large"]],
  [OptionReplyType.ErrExtHeaderReqd, ["extended-headers-required", "it requires extended headers"]],
]);

/**
 * Sends an option and hands over each reply that precedes the last one.
 * @param replyType the only type that these may have; null: there may be none
 * @returns null when the server acknowledges, otherwise its refusal
 * @throws ProtocolError, and what the channel's reads reject with
 */
export async function haggle(
  channel: HandshakeChannel,
  option: number,
  data: Buffer,
  replyType: number | null,
  onReply: (data: Buffer) => void,
): Promise<Refusal | null> {
  channel.write(encodeOption(option, data));
  for (let replies = 0; replies <= OPTION_REPLIES_MAXIMUM; replies++) {
    const header = decodeOptionReplyHeader(await channel.read(OPTION_REPLY_HEADER_BYTES));
    if (header.option !== option) {
      throw new ProtocolError(
        "wrong-option",
        `the server answers option ${header.option} instead of ${option}`,
      );
    }
    if (header.lengthBytes > OPTION_REPLY_MAXIMUM_BYTES) {
      throw new ProtocolError(
        "option-reply-too-long",
        `the server sends an option reply of ${header.lengthBytes} bytes`,
      );
    }
    const reply = await channel.read(header.lengthBytes);
    if (header.type >= OPTION_REPLY_ERROR_BIT)
      return { type: header.type, text: printable(decodeString(reply)) };
    if (header.type === OptionReplyType.Ack) return null;
    if (header.type !== replyType) {
      throw new ProtocolError(
        "unexpected-option-reply",
        `the server answers option ${option} with type ${header.type}`,
      );
    }
    onReply(reply);
  }
  throw new ProtocolError(
    "too-many-option-replies",
    `the server sends over ${OPTION_REPLIES_MAXIMUM} option replies`,
  );
}

/**
 * Whether an option that we can do without was granted.
 * @throws NegotiationError if the refusal is one of going on at all
 */
export function isGranted(refusal: Refusal | null): boolean {
  if (refusal?.type === OptionReplyType.ErrTlsReqd || refusal?.type === OptionReplyType.ErrShutdown) {
    throw refusalError(refusal, "the server refuses to go on");
  }
  return refusal === null;
}

/** `what` says what the server refuses. */
export function refusalError(refusal: Refusal, what: string): NegotiationError {
  const [code, text] = REFUSALS.get(refusal.type) ?? ["refused", `option reply type ${refusal.type}`];
  return new NegotiationError(code, `${what}: ${refusal.text === "" ? text : refusal.text}`);
}

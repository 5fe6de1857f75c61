/**
 * The client's side of the handshake: from the greeting to the export.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#handshake
 * A server without extended headers, structured replies, metadata contexts or NBD_OPT_GO is used without them.
 */
import { LinkError, NegotiationError, ProtocolError } from "../../errors.js";
import { BASE_ALLOCATION, ClientFlag, HandshakeFlag, Option, OptionReplyType } from "../wire/constants.js";
import {
  EXPORT_NAME_PADDING_BYTES,
  EXPORT_NAME_REPLY_BYTES,
  GREETING_BYTES,
  decodeExportNameReply,
  decodeGreeting,
  encodeClientFlags,
} from "../wire/handshake.js";
import { encodeMetaContextRequest, encodeOption } from "../wire/option.js";
import { decodeMetaContext } from "../wire/option-reply.js";
import { askInfo } from "./ask-info.js";
import type { ChosenExport } from "./ask-info.js";
import { haggle, isGranted, refusalError } from "./haggle.js";
import type { HandshakeChannel } from "./handshake-channel.js";
import { printable } from "./server-text.js";

export interface NegotiatedExport extends ChosenExport {
  /** Also where extended headers are. */
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
  /** The metadata contexts that were asked for and are there, with the server's numbers for them. */
  readonly contexts: ReadonlyMap<string, number>;
}

/** What the greeting tells. */
interface ServerStyle {
  /** Options other than NBD_OPT_EXPORT_NAME may be sent. */
  readonly fixedNewstyle: boolean;
  readonly noZeroes: boolean;
}

const NO_DATA = Buffer.alloc(0);
const NO_CONTEXTS: ReadonlyMap<string, number> = new Map();

/** Tells a server that the client leaves before the transmission phase. */
export const ABORT = encodeOption(Option.Abort, NO_DATA);

/**
 * Enters the transmission phase.
 * @param metaContexts what to ask for besides base:allocation
 * @throws NegotiationError, ProtocolError, and what the channel's reads reject with
 */
export async function negotiateExport(
  channel: HandshakeChannel,
  exportName: string,
  wantsExtendedHeaders: boolean,
  metaContexts: readonly string[],
): Promise<NegotiatedExport> {
  const style = await greet(channel);
  const { structuredReplies, extendedHeaders } = style.fixedNewstyle
    ? await agreeOnReplies(channel, wantsExtendedHeaders)
    : { structuredReplies: false, extendedHeaders: false };
  const queries = [...new Set([BASE_ALLOCATION, ...metaContexts])];
  const contexts = structuredReplies ? await selectContexts(channel, exportName, queries) : NO_CONTEXTS;
  const chosen =
    (style.fixedNewstyle ? await askInfo(channel, Option.Go, exportName) : null) ??
    (await chooseByExportName(channel, exportName, style, extendedHeaders));
  const { geometry, blockSize } = chosen;
  return { geometry, blockSize, structuredReplies, extendedHeaders, contexts };
}

/** Whether replies come in chunks, and headers are extended; to be asked before anything that builds upon it. */
export async function agreeOnReplies(
  channel: HandshakeChannel,
  wantsExtendedHeaders: boolean,
): Promise<{ structuredReplies: boolean; extendedHeaders: boolean }> {
  const extendedHeaders = wantsExtendedHeaders && (await request(channel, Option.ExtendedHeaders));
  return {
    extendedHeaders,
    structuredReplies: extendedHeaders || (await request(channel, Option.StructuredReply)),
  };
}

/** Greeting and TLS: what precedes all options. Same errors. */
export async function greet(channel: HandshakeChannel): Promise<ServerStyle> {
  const flags = decodeGreeting(await channel.read(GREETING_BYTES));
  const fixedNewstyle = (flags & HandshakeFlag.FixedNewstyle) !== 0;
  const noZeroes = (flags & HandshakeFlag.NoZeroes) !== 0;
  const answer = (fixedNewstyle ? ClientFlag.FixedNewstyle : 0) | (noZeroes ? ClientFlag.NoZeroes : 0);
  channel.write(encodeClientFlags(answer));
  if (channel.needsTls) await startTls(channel, fixedNewstyle);
  return { fixedNewstyle, noZeroes };
}

/** Never without: whoever asks for TLS wants it, and a refusal may be forged. */
async function startTls(channel: HandshakeChannel, fixedNewstyle: boolean): Promise<void> {
  const refusal = fixedNewstyle
    ? await haggle(channel, Option.StartTls, NO_DATA, null, ignoreReply)
    : { type: OptionReplyType.ErrUnsup, text: "it is too old for it" };
  if (refusal !== null) {
    const { message } = refusalError(refusal, "the server refuses TLS, which is demanded");
    throw new NegotiationError("tls-refused", message);
  }
  await channel.startTls();
}

/** An option without data, which the server grants or not. */
async function request(channel: HandshakeChannel, option: number): Promise<boolean> {
  return isGranted(await haggle(channel, option, NO_DATA, null, ignoreReply));
}

async function selectContexts(
  channel: HandshakeChannel,
  exportName: string,
  queries: readonly string[],
): Promise<ReadonlyMap<string, number>> {
  const selected = new Map<string, number>();
  const data = encodeMetaContextRequest({ exportName, queries });
  const refusal = await haggle(channel, Option.SetMetaContext, data, OptionReplyType.MetaContext, (reply) => {
    const { id, name } = decodeMetaContext(reply);
    if (!queries.includes(name) || selected.has(name) || [...selected.values()].includes(id)) {
      throw new ProtocolError(
        "unasked-meta-context",
        `the server selects the metadata context "${printable(name)}" unasked, or for the second time`,
      );
    }
    selected.set(name, id);
  });
  return isGranted(refusal) ? selected : NO_CONTEXTS;
}

async function chooseByExportName(
  channel: HandshakeChannel,
  exportName: string,
  style: ServerStyle,
  extendedHeaders: boolean,
): Promise<ChosenExport> {
  if (extendedHeaders) {
    throw new ProtocolError("no-go", "the server grants extended headers without knowing NBD_OPT_GO");
  }
  channel.write(encodeOption(Option.ExportName, Buffer.from(exportName, "utf8")));
  try {
    const geometry = decodeExportNameReply(await channel.read(EXPORT_NAME_REPLY_BYTES));
    if (!style.noZeroes) await channel.read(EXPORT_NAME_PADDING_BYTES);
    return { geometry, blockSize: null };
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    // This option has no other way to say no.
    throw new LinkError(error.code, `${error.message} when asked for the export "${printable(exportName)}"`, {
      cause: error,
    });
  }
}

function ignoreReply(): void {
  // haggle() lets none come here.
}

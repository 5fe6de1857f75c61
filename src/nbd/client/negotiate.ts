/**
 * The client's side of the handshake: from the greeting to the export, or to the list of exports.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#handshake
 * A server without extended headers, structured replies, metadata contexts or NBD_OPT_GO is used without them.
 */
import { LinkError, NegotiationError, ProtocolError } from "../../errors.js";
import {
  BASE_ALLOCATION,
  ClientFlag,
  HandshakeFlag,
  InfoType,
  Option,
  OptionReplyType,
} from "../wire/constants.js";
import {
  EXPORT_NAME_PADDING_BYTES,
  EXPORT_NAME_REPLY_BYTES,
  GREETING_BYTES,
  decodeExportNameReply,
  decodeGreeting,
  encodeClientFlags,
} from "../wire/handshake.js";
import type { ExportGeometry } from "../wire/handshake.js";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "../wire/option.js";
import { decodeInfoItem, decodeMetaContext, decodeServerEntry } from "../wire/option-reply.js";
import type { InfoItem } from "../wire/option-reply.js";
import { haggle, isGranted, refusalError } from "./haggle.js";
import type { HandshakeChannel } from "./handshake-channel.js";
import { printable } from "./server-text.js";

/** NBD_INFO_BLOCK_SIZE as the server sent it, not judged yet. */
export type AdvertisedBlockSize = Extract<InfoItem, { kind: "block-size" }>;

interface ChosenExport {
  readonly geometry: ExportGeometry;
  /** null: the server advertises none. */
  readonly blockSize: AdvertisedBlockSize | null;
}

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
  const extendedHeaders =
    style.fixedNewstyle && wantsExtendedHeaders && (await request(channel, Option.ExtendedHeaders));
  const structuredReplies =
    extendedHeaders || (style.fixedNewstyle && (await request(channel, Option.StructuredReply)));
  const queries = [...new Set([BASE_ALLOCATION, ...metaContexts])];
  const contexts = structuredReplies ? await selectContexts(channel, exportName, queries) : NO_CONTEXTS;
  const chosen =
    (style.fixedNewstyle ? await chooseByGo(channel, exportName) : null) ??
    (await chooseByExportName(channel, exportName, style, extendedHeaders));
  return { ...chosen, structuredReplies, extendedHeaders, contexts };
}

/** The names of the exports that the server tells of; same errors. */
export async function negotiateList(channel: HandshakeChannel): Promise<string[]> {
  const { fixedNewstyle } = await greet(channel);
  if (!fixedNewstyle) throw new NegotiationError("unsupported", "the server is too old to list its exports");
  const exportNames: string[] = [];
  const refusal = await haggle(channel, Option.List, NO_DATA, OptionReplyType.Server, (data) => {
    exportNames.push(decodeServerEntry(data).exportName);
  });
  if (refusal !== null) throw refusalError(refusal, "the server refuses to list its exports");
  return exportNames;
}

async function greet(channel: HandshakeChannel): Promise<ServerStyle> {
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

/** null: the server doesn't know NBD_OPT_GO. */
async function chooseByGo(channel: HandshakeChannel, exportName: string): Promise<ChosenExport | null> {
  let geometry = null as ExportGeometry | null;
  let blockSize = null as AdvertisedBlockSize | null;
  const data = encodeInfoRequest({ exportName, infoTypes: [InfoType.BlockSize] });
  const refusal = await haggle(channel, Option.Go, data, OptionReplyType.Info, (reply) => {
    const item = decodeInfoItem(reply);
    if (item.kind === "export") geometry = item;
    else if (item.kind === "block-size") blockSize = item;
  });
  if (refusal?.type === OptionReplyType.ErrUnsup) return null;
  if (refusal !== null)
    throw refusalError(refusal, `the server refuses the export "${printable(exportName)}"`);
  if (geometry === null) {
    throw new ProtocolError(
      "no-export-information",
      "the server grants the export but doesn't say how large it is",
    );
  }
  return { geometry, blockSize };
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

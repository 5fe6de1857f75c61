/**
 * Handshakes that end without the transmission phase: the client asks what there is, and leaves.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types
 */
import { NegotiationError } from "../../errors.js";
import { Option, OptionReplyType } from "../wire/constants.js";
import { encodeMetaContextRequest } from "../wire/option.js";
import { decodeMetaContext, decodeServerEntry } from "../wire/option-reply.js";
import type { ServerEntry } from "../wire/option-reply.js";
import { askInfo } from "./ask-info.js";
import type { ExportInfo } from "./ask-info.js";
import { haggle, isGranted, refusalError } from "./haggle.js";
import type { Refusal } from "./haggle.js";
import type { HandshakeChannel } from "./handshake-channel.js";
import { agreeOnReplies, greet } from "./negotiate.js";
import { printable } from "./server-text.js";

export interface QueriedExport extends ExportInfo {
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
  /** What could be selected, or wildcards for that. */
  readonly metaContexts: readonly string[];
}

/**
 * All exports that the server tells of.
 * @throws NegotiationError, ProtocolError, and what the channel's reads reject with
 */
export async function negotiateList(channel: HandshakeChannel): Promise<ServerEntry[]> {
  await greetForOptions(channel);
  const entries: ServerEntry[] = [];
  const refusal = await haggle(channel, Option.List, Buffer.alloc(0), OptionReplyType.Server, (data) => {
    entries.push(decodeServerEntry(data));
  });
  if (refusal !== null) throw refusalError(refusal, "the server refuses to list its exports");
  return entries;
}

/** What the server tells of an export to those who agree on what negotiateExport() does; same errors. */
export async function negotiateQuery(
  channel: HandshakeChannel,
  exportName: string,
  wantsExtendedHeaders: boolean,
): Promise<QueriedExport> {
  await greetForOptions(channel);
  const { structuredReplies, extendedHeaders } = await agreeOnReplies(channel, wantsExtendedHeaders);
  const info = await askInfo(channel, Option.Info, exportName);
  if (info === null) {
    throw new NegotiationError("unsupported", "the server tells of an export to those only who use it");
  }
  const listed = structuredReplies
    ? await listContexts(channel, exportName, [])
    : { names: [], refusal: null };
  return {
    ...info,
    structuredReplies,
    extendedHeaders,
    metaContexts: isGranted(listed.refusal) ? listed.names : [],
  };
}

/** The metadata contexts that match the queries, without any all; same errors. */
export async function negotiateContexts(
  channel: HandshakeChannel,
  exportName: string,
  wantsExtendedHeaders: boolean,
  queries: readonly string[],
): Promise<string[]> {
  await greetForOptions(channel);
  const { structuredReplies } = await agreeOnReplies(channel, wantsExtendedHeaders);
  if (!structuredReplies) {
    throw new NegotiationError("unsupported", "the server has no metadata contexts: no structured replies");
  }
  const { names, refusal } = await listContexts(channel, exportName, queries);
  if (refusal !== null) {
    const name = printable(exportName);
    throw refusalError(refusal, `the server refuses to list the metadata contexts of "${name}"`);
  }
  return names;
}

/** "If an error is returned, the client MUST disregard any context replies that may have been sent." */
async function listContexts(
  channel: HandshakeChannel,
  exportName: string,
  queries: readonly string[],
): Promise<{ names: string[]; refusal: Refusal | null }> {
  const names: string[] = [];
  const data = encodeMetaContextRequest({ exportName, queries });
  const refusal = await haggle(
    channel,
    Option.ListMetaContext,
    data,
    OptionReplyType.MetaContext,
    (reply) => {
      names.push(decodeMetaContext(reply).name);
    },
  );
  return { names, refusal };
}

async function greetForOptions(channel: HandshakeChannel): Promise<void> {
  const { fixedNewstyle } = await greet(channel);
  if (!fixedNewstyle) throw new NegotiationError("unsupported", "the server is too old to be asked anything");
}

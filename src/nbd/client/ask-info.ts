/**
 * NBD_OPT_INFO and NBD_OPT_GO, which tell the same of an export; the latter also enters the transmission phase.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types
 */
import { ProtocolError } from "../../errors.js";
import { InfoType, Option, OptionReplyType } from "../wire/constants.js";
import type { ExportGeometry } from "../wire/handshake.js";
import { encodeInfoRequest } from "../wire/option.js";
import { decodeInfoItem } from "../wire/option-reply.js";
import type { InfoItem } from "../wire/option-reply.js";
import { haggle, refusalError } from "./haggle.js";
import type { HandshakeChannel } from "./handshake-channel.js";
import { printable } from "./server-text.js";

/** NBD_INFO_BLOCK_SIZE as the server sent it, not judged yet. */
export type AdvertisedBlockSize = Extract<InfoItem, { kind: "block-size" }>;

/** What is needed to use an export. */
export interface ChosenExport {
  readonly geometry: ExportGeometry;
  /** null: the server advertises none. */
  readonly blockSize: AdvertisedBlockSize | null;
}

export interface ExportInfo extends ChosenExport {
  /** null: the server tells none. */
  readonly name: string | null;
  readonly description: string | null;
}

/** What to ask for besides NBD_INFO_EXPORT, which comes unasked. */
const INFO_TYPES: ReadonlyMap<number, readonly number[]> = new Map([
  [Option.Go, [InfoType.BlockSize]],
  [Option.Info, [InfoType.BlockSize, InfoType.Name, InfoType.Description]],
]);

/**
 * `option` is NBD_OPT_INFO or NBD_OPT_GO; null: the server doesn't know it.
 * @throws NegotiationError, ProtocolError, and what the channel's reads reject with
 */
export async function askInfo(
  channel: HandshakeChannel,
  option: number,
  exportName: string,
): Promise<ExportInfo | null> {
  const items = new Map<InfoItem["kind"], InfoItem>();
  const data = encodeInfoRequest({ exportName, infoTypes: INFO_TYPES.get(option) ?? [] });
  const refusal = await haggle(channel, option, data, OptionReplyType.Info, (reply) => {
    const item = decodeInfoItem(reply);
    items.set(item.kind, item);
  });
  if (refusal?.type === OptionReplyType.ErrUnsup) return null;
  if (refusal !== null)
    throw refusalError(refusal, `the server refuses the export "${printable(exportName)}"`);
  const find = <K extends InfoItem["kind"]>(kind: K): Extract<InfoItem, { kind: K }> | null =>
    (items.get(kind) as Extract<InfoItem, { kind: K }> | undefined) ?? null;
  const geometry = find("export");
  if (geometry === null) {
    throw new ProtocolError(
      "no-export-information",
      "the server grants the export but doesn't say how large it is",
    );
  }
  return {
    geometry,
    blockSize: find("block-size"),
    name: find("name")?.name ?? null,
    description: find("description")?.description ?? null,
  };
}

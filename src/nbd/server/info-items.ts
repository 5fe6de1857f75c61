/** The answer to NBD_OPT_INFO and NBD_OPT_GO. */
import { InfoType } from "../wire/constants.js";
import { encodeInfoItem } from "../wire/option-reply.js";
import { blockSizeOf, needsBlockSizeAgreement, transmissionFlagsOf } from "./advertise.js";
import type { Agreement } from "./agreement.js";

export interface InfoItems {
  /** Data of one NBD_REP_INFO each. */
  readonly sent: readonly Buffer[];
  /** The client has to ask for the block size: NBD_REP_ERR_BLOCK_SIZE_REQD. */
  readonly lacksBlockSize: boolean;
}

/** Block sizes come unasked, too; they may spare the client a round trip. */
export function infoItems(agreement: Agreement, requested: readonly number[]): InfoItems {
  const e = agreement.export;
  const sizeBytes = e.device.info.sizeBytes;
  const transmissionFlags = transmissionFlagsOf(agreement);
  const sent = [encodeInfoItem({ kind: "block-size", ...blockSizeOf(e) })];
  if (!requested.includes(InfoType.BlockSize) && needsBlockSizeAgreement(e)) {
    return { sent, lacksBlockSize: true };
  }
  sent.push(encodeInfoItem({ kind: "export", sizeBytes, transmissionFlags }));
  if (requested.includes(InfoType.Name)) sent.push(encodeInfoItem({ kind: "name", name: e.name }));
  if (requested.includes(InfoType.Description) && e.description !== undefined) {
    sent.push(encodeInfoItem({ kind: "description", description: e.description }));
  }
  return { sent, lacksBlockSize: false };
}

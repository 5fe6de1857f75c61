/** What the handshake hands over to the transmission phase. */
import type { NbdExport } from "./exports.js";
import type { SelectedContext } from "./metadata-context.js";

export interface Agreement {
  readonly export: NbdExport;
  /** Also where extended headers are. */
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
  /** None without structured replies. */
  readonly contexts: readonly SelectedContext[];
}

/** Asking a server what it has, without using it. */
import { parseNbdUri } from "../uri.js";
import { requireExportName, shakeHands } from "./connect.js";
import type { NbdEndpoint } from "./connect.js";
import type { NbdDevice } from "./device.js";
import { deviceInfo, exportAbilities } from "./export-info.js";
import { ABORT } from "./negotiate.js";
import { negotiateContexts, negotiateList, negotiateQuery } from "./negotiate-query.js";
import type { QueriedExport } from "./negotiate-query.js";

/** A server and one of its exports. */
export interface NbdExportQuery extends NbdEndpoint {
  /** Empty: the server's default export. */
  readonly exportName: string;
  /** Ask as a client that wants extended headers; default true, as connectNbd(). */
  readonly extendedHeaders?: boolean;
}

export interface ListedExport {
  readonly name: string;
  /** For a person; empty where the server has none to tell. */
  readonly description: string;
}

/** What is known of an export before it is opened, as NbdDevice tells it. */
type Known = Pick<NbdDevice, "info" | "canMultiConn" | "canFastZero" | "isRotational" | "hasExtendedHeaders">;

/** What a server tells of an export. */
export interface ExportDescription extends ListedExport, Known {
  /** The server's own name for it, if it tells; else as it was asked for. */
  readonly name: string;
  /** All metadata contexts that can be asked for; a server may name a wildcard, such as `x:`, for many: listMetaContexts(). */
  readonly metaContexts: readonly string[];
}

/**
 * The exports that the server tells of, by NBD_OPT_LIST; of a URI the export is ignored.
 * @throws as connectNbd()
 */
export async function listExports(server: string | NbdEndpoint): Promise<ListedExport[]> {
  const endpoint = typeof server === "string" ? parseNbdUri(server) : server;
  const { transport, result } = await shakeHands(endpoint, negotiateList);
  transport.end(ABORT);
  return result.map(({ exportName, description }) => ({ name: exportName, description }));
}

/**
 * What the server tells of an export, by NBD_OPT_INFO and NBD_OPT_LIST_META_CONTEXT: nothing is opened.
 * @throws as connectNbd(); NegotiationError "unsupported" where the server knows no NBD_OPT_INFO
 */
export async function describeExport(target: string | NbdExportQuery): Promise<ExportDescription> {
  const query: NbdExportQuery = typeof target === "string" ? parseNbdUri(target) : target;
  requireExportName(query.exportName);
  const { transport, result } = await shakeHands(query, async (channel) =>
    descriptionOf(
      query.exportName,
      await negotiateQuery(channel, query.exportName, query.extendedHeaders ?? true),
    ),
  );
  transport.end(ABORT);
  return result;
}

/**
 * The names of an export's metadata contexts that match one of the queries, without any all, by
 * NBD_OPT_LIST_META_CONTEXT. What a query means is up to its namespace; `base:`, and of qemu `qemu:` and
 * `qemu:dirty-bitmap:`, match all that begin so.
 * @throws as connectNbd(); NegotiationError "unsupported" where the server has no metadata contexts
 */
export async function listMetaContexts(
  target: string | NbdExportQuery,
  queries: readonly string[] = [],
): Promise<string[]> {
  const query: NbdExportQuery = typeof target === "string" ? parseNbdUri(target) : target;
  requireExportName(query.exportName);
  const { transport, result } = await shakeHands(query, (channel) =>
    negotiateContexts(channel, query.exportName, query.extendedHeaders ?? true, queries),
  );
  transport.end(ABORT);
  return result;
}

function descriptionOf(askedName: string, told: QueriedExport): ExportDescription {
  const contexts = new Map(told.metaContexts.map((name) => [name, 0]));
  const abilities = exportAbilities({ ...told, contexts });
  return {
    name: told.name ?? askedName,
    description: told.description ?? "",
    info: deviceInfo({ ...told, contexts }),
    canMultiConn: abilities.multiConn,
    canFastZero: abilities.fastZero,
    isRotational: abilities.rotational,
    hasExtendedHeaders: told.extendedHeaders,
    metaContexts: told.metaContexts,
  };
}

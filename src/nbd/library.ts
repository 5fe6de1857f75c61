/**
 * `nbd-replication/nbd`: the NBD server and client for other programs; docs/nbd.md shows their use.
 *
 * The one file that only passes on what others define: a package needs a single door, and what isn't named here
 * may change at any time. Nothing inside this project imports it.
 */
export { checked } from "../block/checked.js";
export { Flag } from "../block/device.js";
export type { BlockDevice, BlockSize, Capability, DeviceInfo, Extent, Flags } from "../block/device.js";
export {
  ConfigError,
  DeviceError,
  LinkError,
  NegotiationError,
  ProtocolError,
  ReplError,
  StateError,
} from "../errors.js";
export type { Errno } from "../errors.js";
export type { Address } from "../net/address.js";
export { PeerFilter } from "../net/peer-filter.js";
export { TlsAcceptor } from "../net/tls/acceptor.js";
export type { TlsAcceptorOptions, TlsCredentials, TlsSession } from "../net/tls/acceptor.js";
export type { TlsParameters } from "../net/tls/client.js";
export { connectNbd } from "./client/connect.js";
export type { NbdClientOptions, NbdEndpoint } from "./client/connect.js";
export type { NbdDevice } from "./client/device.js";
export { openNbd } from "./client/open.js";
export type { OpenNbdOptions } from "./client/open.js";
export type { ParallelNbdDevice } from "./client/parallel-device.js";
export { describeExport, listExports, listMetaContexts } from "./client/query.js";
export type { ExportDescription, ListedExport, NbdExportQuery } from "./client/query.js";
export { ExportTable } from "./server/exports.js";
export type { ConnectionObserver, ConnectionSummary, MetadataContext, NbdExport } from "./server/exports.js";
export type { ConnectionInfo } from "./server/connection.js";
export { NbdServer } from "./server/server.js";
export type { NbdServerOptions } from "./server/server.js";
export type { BlockDescriptor } from "./wire/structured-reply.js";
export { formatNbdUri, parseNbdUri } from "./uri.js";
export type { NbdUri } from "./uri.js";

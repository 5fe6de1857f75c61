/** Where to connect to, and how. */
import type { Address } from "./address.js";
import type { TlsParameters } from "./tls/client.js";

/** An address; with TLS from the first byte, or as the protocol begins it, where `tls` is there. */
export type Endpoint = Address & { readonly tls?: TlsParameters };

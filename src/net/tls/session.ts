/** What holds for TLS on either side. */
import { constants } from "node:crypto";
import type { SecureContextOptions, TLSSocket } from "node:tls";

/** Older versions are broken; sessions are not resumed, so that each connection is verified anew. */
export const VERSIONS = {
  minVersion: "TLSv1.2",
  maxVersion: "TLSv1.3",
  secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
} as const satisfies SecureContextOptions;

/** Of TLS 1.3 the first only: a key is bound to a hash, and for these keys that is SHA-256. */
const PSK_CIPHERS = [
  "TLS_AES_128_GCM_SHA256",
  "TLS_CHACHA20_POLY1305_SHA256",
  "ECDHE-PSK-CHACHA20-POLY1305",
  "DHE-PSK-CHACHA20-POLY1305",
  "DHE-PSK-AES256-GCM-SHA384",
  "DHE-PSK-AES128-GCM-SHA256",
  "ECDHE-PSK-AES256-CBC-SHA384",
  "ECDHE-PSK-AES128-CBC-SHA256",
] as const;

/** For a side that has a pre-shared key and no certificate: it can't come to any other kind of session. */
export const PSK_ONLY = {
  ciphers: PSK_CIPHERS.join(":"),
  dhparam: "auto",
} as const satisfies SecureContextOptions;

/**
 * From now on each piece is written by itself. Several that are written together Node would first copy into fresh memory of their
 * length, whose page faults cost more than a TLS record of its own for each header does.
 */
export function writePiecesApart(session: TLSSocket): void {
  // A stream without `_writev` gets each chunk by `_write`.
  Reflect.set(session, "_writev", null);
}

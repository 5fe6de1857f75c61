/** Why a TLS session did not come about, in words of one line; OpenSSL's own are for those who know it. */
import { describeError } from "../../errors.js";

/** By the code of Node's error. */
const REASONS: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: "its certificate has expired",
  CERT_NOT_YET_VALID: "its certificate is not valid yet",
  CERT_REVOKED: "its certificate was revoked",
  CERT_SIGNATURE_FAILURE: "its certificate is not from our CA: wrong signature",
  DEPTH_ZERO_SELF_SIGNED_CERT: "unknown CA: its certificate signed itself",
  SELF_SIGNED_CERT_IN_CHAIN: "unknown CA: its certificate is not from ours",
  UNABLE_TO_GET_ISSUER_CERT: "unknown CA: its certificate is not from ours",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "unknown CA: its certificate is not from ours",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "unknown CA: its certificate is not from ours",
  INVALID_PURPOSE: "its certificate is for another purpose",
  ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE: "it has no certificate",
  ERR_SSL_UNSUPPORTED_PROTOCOL: "it offers no TLS 1.2 or 1.3",
  ERR_SSL_VERSION_TOO_LOW: "it offers no TLS 1.2 or 1.3",
  ERR_SSL_NO_SHARED_CIPHER:
    "nothing in common: one side wants certificates, the other a pre-shared key, perhaps",
  ERR_SSL_NO_SUITABLE_SIGNATURE_ALGORITHM:
    "it offers none of the pre-shared keys, nor is there a certificate",
  ERR_SSL_PSK_IDENTITY_NOT_FOUND: "its user is not among the pre-shared keys",
  ERR_SSL_BINDER_DOES_NOT_VERIFY: "its pre-shared key is not ours",
  ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC: "its key is not ours",
  ERR_SSL_WRONG_VERSION_NUMBER: "what it sends is not TLS",
  ERR_SSL_HTTP_REQUEST: "what it sends is not TLS",
  ERR_SSL_PACKET_LENGTH_TOO_LONG: "what it sends is not TLS",
  ERR_SSL_TLSV1_ALERT_UNKNOWN_CA: "it refuses our certificate: unknown CA",
  ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION: "it refuses our versions of TLS: 1.2 and 1.3",
  ERR_SSL_SSLV3_ALERT_BAD_CERTIFICATE: "it refuses our certificate as bad",
  ERR_SSL_SSLV3_ALERT_CERTIFICATE_EXPIRED: "it refuses our certificate as expired",
  ERR_SSL_SSLV3_ALERT_CERTIFICATE_REVOKED: "it refuses our certificate as revoked",
  ERR_SSL_SSLV3_ALERT_CERTIFICATE_UNKNOWN: "it refuses our certificate",
  ERR_SSL_SSLV3_ALERT_HANDSHAKE_FAILURE: "it finds nothing in common, or wants a certificate",
  ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED: "it demands a client certificate",
  ERR_SSL_TLSV1_ALERT_ACCESS_DENIED: "it denies access",
  ERR_SSL_TLSV1_UNKNOWN_PSK_IDENTITY: "it does not know the user of our pre-shared key",
  ERR_SSL_TLSV1_ALERT_UNKNOWN_PSK_IDENTITY: "it does not know the user of our pre-shared key",
  ERR_SSL_TLSV1_ALERT_DECRYPT_ERROR: "it finds a signature or a pre-shared key wrong",
  ERR_SSL_SSLV3_ALERT_BAD_RECORD_MAC: "it finds our key wrong",
  ECONNRESET: "it hung up in the middle of it",
};

/** @param error from node:tls, or the code of one */
export function tlsReason(error: unknown): string {
  const code = typeof error === "string" ? error : textMember(error, "code");
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID") {
    // Of a certificate without addresses Node lists none, after a colon.
    const reason = (textMember(error, "reason") ?? "").replace(/:? *$/, "");
    return `its certificate is for another host: ${reason}: reach it by a name that this has, or say that name by tls-hostname`;
  }
  // OpenSSL's own words, without its addresses and function names.
  return (code === null ? undefined : REASONS[code]) ?? textMember(error, "reason") ?? describeError(error);
}

function textMember(error: unknown, name: "code" | "reason"): string | null {
  const value: unknown = error instanceof Error ? Reflect.get(error, name) : null;
  return typeof value === "string" ? value : null;
}

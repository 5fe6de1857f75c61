/**
 * The first message of a TLS client, gathered before any session is made for it: a session costs a hundred kilobytes and a
 * millisecond, and who never sends a whole message is not worth it.
 *
 * [RFC 8446, section 5.1](https://www.rfc-editor.org/rfc/rfc8446#section-5.1): a record is its type, a version and a length of
 * two bytes each, and the message or its beginning; the first record of a client is of type handshake and its message is
 * client_hello. What else is wrong with it OpenSSL will find.
 */
import { NegotiationError } from "../../errors.js";

const RECORD_HEADER_BYTES = 5;
const RECORD_MAXIMUM_BYTES = 16 * 1024;
const HANDSHAKE_RECORD = 22;
/** Of all versions since SSL 3.0. */
const MAJOR_VERSION = 3;
const CLIENT_HELLO = 1;

export class ClientHelloReader {
  readonly #header = Buffer.alloc(RECORD_HEADER_BYTES);
  #record: Buffer | null = null;
  #filledBytes = 0;

  /**
   * Takes the next bytes of the stream, which it copies.
   * @returns the first record and whatever came behind it, once the record is complete; null: it is not yet
   * @throws NegotiationError "tls-failed"
   */
  push(chunk: Buffer): Buffer | null {
    const headerMissing = Math.max(0, RECORD_HEADER_BYTES - this.#filledBytes);
    const inHeader = chunk.copy(this.#header, this.#filledBytes, 0, headerMissing);
    this.#filledBytes += inHeader;
    if (this.#filledBytes < RECORD_HEADER_BYTES) {
      requireTls(this.#header.subarray(0, this.#filledBytes));
      return null;
    }
    const record = (this.#record ??= this.#newRecord());
    const copied = chunk.copy(record, this.#filledBytes, inHeader);
    this.#filledBytes += copied;
    requireTls(record.subarray(0, this.#filledBytes));
    if (this.#filledBytes < record.length) return null;
    const rest = chunk.subarray(inHeader + copied);
    return rest.length === 0 ? record : Buffer.concat([record, rest]);
  }

  #newRecord(): Buffer {
    requireTls(this.#header);
    const record = Buffer.allocUnsafeSlow(RECORD_HEADER_BYTES + this.#header.readUInt16BE(3));
    this.#header.copy(record);
    return record;
  }
}

/** @param start of the record: as much of it as there is */
function requireTls(start: Buffer): void {
  const [type = HANDSHAKE_RECORD, major = MAJOR_VERSION, , , , message = CLIENT_HELLO] = start;
  const lengthBytes = start.length < RECORD_HEADER_BYTES ? 1 : start.readUInt16BE(3);
  const isTls = type === HANDSHAKE_RECORD && major === MAJOR_VERSION && message === CLIENT_HELLO;
  if (isTls && lengthBytes > 0 && lengthBytes <= RECORD_MAXIMUM_BYTES) return;
  throw new NegotiationError("tls-failed", "no TLS session: what it sends is not TLS");
}

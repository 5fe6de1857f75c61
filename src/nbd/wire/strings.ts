/**
 * Strings as the NBD document wants them: UTF-8, no NUL, at most 4096 bytes ("Conventions").
 */
import { ProtocolError } from "../../errors.js";
import { STRING_MAXIMUM_BYTES } from "./constants.js";

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** @throws ProtocolError string-too-long, string-has-nul, string-not-utf8 */
export function decodeString(bytes: Buffer): string {
  if (bytes.length > STRING_MAXIMUM_BYTES) {
    throw new ProtocolError("string-too-long", `string of ${bytes.length} bytes, at most 4096 are allowed`);
  }
  if (bytes.includes(0)) throw new ProtocolError("string-has-nul", "string contains a NUL");
  try {
    return decoder.decode(bytes);
  } catch (error) {
    throw new ProtocolError("string-not-utf8", "string is not valid UTF-8", { cause: error });
  }
}

/** Whether the other side can take it as a string; half a surrogate pair has no UTF-8. */
export function isString(text: unknown): boolean {
  if (typeof text !== "string") return false;
  return Buffer.byteLength(text) <= STRING_MAXIMUM_BYTES && !/\0|\p{Surrogate}/u.test(text);
}

/** The UTF-8 bytes of a message of ours, cut at a character when it is too long. */
export function encodeMessage(text: string): Buffer {
  const bytes = Buffer.from(text.replaceAll("\0", ""), "utf8");
  if (bytes.length <= STRING_MAXIMUM_BYTES) return bytes;
  let end = STRING_MAXIMUM_BYTES;
  // 10xxxxxx continues a character.
  while (((bytes[end] ?? 0) & 0xc0) === 0x80) end--;
  return bytes.subarray(0, end);
}

/**
 * Files of pre-shared keys as GnuTLS's psktool writes them and nbdkit reads them: `USER:HEXKEY` on each line.
 *
 * Errors name the file and the line, never what stands there.
 */
import { readFileSync } from "node:fs";
import { ConfigError, describeError } from "../../errors.js";

/** OpenSSL takes no longer keys and identities. */
const KEY_MAXIMUM_BYTES = 256;
const USER_MAXIMUM_BYTES = 128;

/** A line for each client; this is a mistaken path. */
const FILE_MAXIMUM_BYTES = 1024 * 1024;

/** The keys by user. @throws ConfigError */
export function readPskFile(path: string): ReadonlyMap<string, Buffer> {
  let content: Buffer;
  try {
    content = readFileSync(path);
  } catch (error) {
    throw badFile(path, `it can't be read: ${describeError(error)}`, error);
  }
  if (content.length > FILE_MAXIMUM_BYTES) throw badFile(path, "it is too large");
  return parsePskFile(path, content.toString());
}

function parsePskFile(path: string, text: string): ReadonlyMap<string, Buffer> {
  const keys = new Map<string, Buffer>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line === "") continue;
    const [, user, key] = /^([^:]+):((?:[0-9a-fA-F]{2})+)$/.exec(line) ?? [];
    const where = `line ${index + 1}`;
    if (user === undefined || key === undefined)
      throw badFile(path, `${where} is not USER:HEXKEY, as psktool writes it`);
    if (key.length / 2 > KEY_MAXIMUM_BYTES || Buffer.byteLength(user) > USER_MAXIMUM_BYTES) {
      throw badFile(path, `${where} has a key or a user that is too long`);
    }
    if (keys.has(user)) throw badFile(path, `${where} names a user for the second time`);
    keys.set(user, Buffer.from(key, "hex"));
  }
  if (keys.size === 0) throw badFile(path, "it holds no key");
  return keys;
}

function badFile(path: string, problem: string, cause?: unknown): ConfigError {
  return new ConfigError("bad-psk-file", `the pre-shared keys in "${path}" can't be used: ${problem}`, {
    cause,
  });
}

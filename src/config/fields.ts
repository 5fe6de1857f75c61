/**
 * Zod pieces that turn one text of an operator into one checked value: shared by the options and by the
 * arguments of QMP commands, so that both take and refuse the same.
 */
import { resolve } from "node:path";
import { z } from "zod";
import { ConfigError } from "../errors.js";
import { parseNbdUri } from "../nbd/uri.js";
import { parseAddress } from "../net/address.js";
import { parseOwner } from "../net/owner.js";
import { parseNetwork } from "../net/peer-filter.js";
import { tlsClientOptions } from "../net/tls/client.js";
import { parseDiskName, parseDuration, parseRate, parseSize } from "./units.js";

/** A disk to be served: its export name, and an absolute path or an NBD URI. */
export interface DiskConfig {
  readonly name: string;
  readonly path: string;
}

/** How large a disk is to be made. */
export interface GrowthConfig {
  readonly name: string;
  readonly sizeBytes: number;
}

/** A parser that throws ConfigError, as a schema; the message goes through as it is. */
function textual<T>(parse: (text: string) => T): z.ZodType<T, string> {
  return z.string().transform((text, context) => {
    try {
      return parse(text);
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      context.addIssue(error.message);
      return z.NEVER;
    }
  });
}

export const sizeField = textual(parseCreateSize);
export const durationField = textual(parseDuration);
export const rateField = textual(parseRate);
export const addressField = textual(parseAddress);
export const networkField = textual((text) => {
  parseNetwork(text);
  return text;
});
export const countField = textual(parseCount);
export const socketModeField = textual(parseSocketMode);
export const ownerField = textual(parseOwner);
export const diskField = textual(parseDisk);
export const growthField = textual(parseGrowth);
export const replicaField = textual(parseReplica);
export const directoryField = textual(parseDirectory);

/** One of a few words. */
export function choiceField<const T extends string>(words: readonly T[]): z.ZodType<T, string> {
  return textual((text) => {
    const word = words.find((known) => known === text);
    if (word === undefined)
      throw new ConfigError("bad-choice", `"${text}" is not one of ${words.join(", ")}`);
    return word;
  });
}

/**
 * Reads the text of one option.
 * @throws ConfigError with `name` in front
 */
export function readField<T>(field: z.ZodType<T, string>, name: string, text: string): T {
  const result = field.safeParse(text);
  if (result.success) return result.data;
  throw badOption(name, result.error.issues[0]?.message ?? "can't be used");
}

/** @param option as the operator wrote it: "--size", "pair.yaml: size" */
export function badOption(option: string, problem: string): ConfigError {
  return new ConfigError("bad-option", `${option}: ${problem}`);
}

/** No disk is smaller than a sector. */
const MINIMUM_DISK_BYTES = 512;

function parseCreateSize(text: string): number {
  const bytes = parseSize(text);
  if (bytes < MINIMUM_DISK_BYTES || bytes % MINIMUM_DISK_BYTES !== 0) {
    throw new ConfigError(
      "bad-size",
      `"${text}" can't be a disk's size: use a multiple of ${MINIMUM_DISK_BYTES} bytes`,
    );
  }
  return bytes;
}

function parseDisk(text: string): DiskConfig {
  const separator = text.indexOf("=");
  if (separator === -1)
    throw new ConfigError("bad-disk", `"${text}" is not NAME=PATH, as in disk0=/srv/disk0.img`);
  const name = parseDiskName(text.slice(0, separator));
  const path = text.slice(separator + 1);
  if (path === "")
    throw new ConfigError("bad-disk", `"${text}" lacks the path, as in ${name}=/srv/${name}.img`);
  if (!/^nbds?(?:\+\w+)?:/.test(path)) return { name, path: resolve(path) };
  const { tls, tlsParameters } = parseNbdUri(path);
  if (tls) tlsClientOptions(tlsParameters, null);
  return { name, path };
}

function parseGrowth(text: string): GrowthConfig {
  const separator = text.indexOf("=");
  if (separator === -1) throw new ConfigError("bad-growth", `"${text}" is not NAME=SIZE, as in disk0=20G`);
  return {
    name: parseDiskName(text.slice(0, separator)),
    sizeBytes: parseSize(text.slice(separator + 1)),
  };
}

/** The replica's server; the exports on it are asked for by the disks' names. */
function parseReplica(text: string): string {
  const uri = parseNbdUri(text);
  if (uri.exportName !== "") {
    throw new ConfigError(
      "bad-replica",
      `"${text}": leave out "${uri.exportName}": each disk is asked for by its own name`,
    );
  }
  return text;
}

/** Of connections: one at least. */
function parseCount(text: string): number {
  const count = /^\d{1,7}$/.test(text) ? Number(text) : 0;
  if (count === 0) throw new ConfigError("bad-count", `"${text}" is not a number from 1 on`);
  return count;
}

/** Octal digits as chmod(1) takes them. */
function parseSocketMode(text: string): number {
  if (!/^0?[0-7]{3}$/.test(text)) {
    throw new ConfigError("bad-mode", `"${text}" is not a mode: use octal digits, as in 0660`);
  }
  return Number.parseInt(text, 8);
}

function parseDirectory(text: string): string {
  if (text === "") throw new ConfigError("bad-directory", "a directory must be named");
  return resolve(text);
}

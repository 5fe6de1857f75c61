/**
 * Quantities as people write them on the command line, and back.
 *
 * Suffixes are powers of 1024, as qemu-img, nbdkit and lvm take them ("1.5G"). "GB" is refused: it
 * would be 1000^3 to some readers and 1024^3 to others.
 */
import { LONGEST_DELAY_MS } from "../clock.js";
import { ConfigError } from "../errors.js";

const SIZE_SUFFIXES = ["", "K", "M", "G", "T", "P", "E"] as const;

const DURATION_UNITS_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

const DISK_NAME = /^[A-Za-z0-9._-]{1,64}$/;

/**
 * Reads "1G", "512M", "1GiB", "1.5G" or plain bytes ("4096"); 1024 is the base. Returns bytes.
 * @throws ConfigError
 */
export function parseSize(text: string): number {
  const match = /^(?<number>\d+(?:\.\d+)?)(?:(?<suffix>[kKMGTPE])(?:iB)?|B)?$/.exec(text);
  if (match?.groups === undefined) {
    throw new ConfigError(
      "bad-size",
      `"${text}" is not a size: use bytes, or a number with K, M, G or T, as in 512M`,
    );
  }
  const exponent = SIZE_SUFFIXES.indexOf((match.groups["suffix"] ?? "").toUpperCase() as "K");
  const bytes = Number(match.groups["number"]) * 1024 ** exponent;
  if (bytes > Number.MAX_SAFE_INTEGER) {
    throw new ConfigError("bad-size", `size "${text}" is too large: the limit is 8P`);
  }
  if (!Number.isInteger(bytes)) {
    throw new ConfigError("bad-size", `size "${text}" is not a whole number of bytes`);
  }
  return bytes;
}

/**
 * Reads "500ms", "5s", "1.5s", "2m", "1h" or "0". Returns milliseconds.
 * @throws ConfigError
 */
export function parseDuration(text: string): number {
  if (/^0+$/.test(text)) return 0;
  const match = /^(?<number>\d+(?:\.\d+)?)(?<unit>ms|s|m|h)$/.exec(text);
  const unitMs = DURATION_UNITS_MS[match?.groups?.["unit"] ?? ""];
  if (unitMs === undefined) {
    throw new ConfigError(
      "bad-duration",
      `"${text}" is not a time: use a number with ms, s, m or h, as in 5s, or 0`,
    );
  }
  const durationMs = Number(match?.groups?.["number"]) * unitMs;
  if (durationMs > LONGEST_DELAY_MS) {
    throw new ConfigError("bad-duration", `time "${text}" is too long: the limit is 24 days`);
  }
  return Math.round(durationMs);
}

/**
 * Reads a size, with "/s" behind it or not. Returns bytes per second; 0 is without limit.
 * @throws ConfigError
 */
export function parseRate(text: string): number {
  try {
    return parseSize(text.endsWith("/s") ? text.slice(0, -"/s".length) : text);
  } catch (error) {
    throw new ConfigError(
      "bad-rate",
      `"${text}" is not a rate: use bytes a second, as in 100M, or 0 for no limit`,
      {
        cause: error,
      },
    );
  }
}

/**
 * A disk's name, which is also its NBD export name and part of file names in the state directory.
 * @throws ConfigError
 */
export function parseDiskName(text: string): string {
  if (!DISK_NAME.test(text) || text === "." || text === "..") {
    throw new ConfigError(
      "bad-disk-name",
      `"${text}" can't name a disk: use 1 to 64 of A-Z, a-z, 0-9, ".", "_" and "-"`,
    );
  }
  return text;
}

/** "0 B", "512 B", "4 KiB", "1.5 GiB": three significant digits, for people. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let exponent = 0;
  // 1023.5 would print as "1024 KiB" where "1 MiB" is meant.
  while (value >= 1023.5 && exponent < SIZE_SUFFIXES.length - 1) {
    value /= 1024;
    exponent += 1;
  }
  return `${threeDigits(value)} ${exponent === 0 ? "B" : `${SIZE_SUFFIXES[exponent] ?? ""}iB`}`;
}

/** "0.4 s", "12 s", "3 min 20 s", "5 h 12 min", "3 d 4 h": the two largest units, for people. */
export function formatSeconds(seconds: number): string {
  if (seconds < 9.95) return `${Number(seconds.toFixed(1))} s`;
  const whole = Math.round(seconds);
  const parts: [number, string][] = [
    [Math.floor(whole / 86_400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count > 0)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(" ");
}

function threeDigits(value: number): string {
  return String(Number(value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)));
}

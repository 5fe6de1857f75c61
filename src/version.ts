/** The version of this software, kept in package.json alone. */
import { readFileSync } from "node:fs";

/** Seen from dist/src/. */
const PACKAGE_FILE = new URL("../../package.json", import.meta.url);

export function readVersion(): string {
  return (JSON.parse(readFileSync(PACKAGE_FILE, "utf8")) as { version: string }).version;
}

/** `npm run man`: writes docs/man/; a test sees to it that this was done. */
import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { readVersion } from "../version.js";
import { manPage } from "./man-page.js";
import { primaryProgram } from "./primary.js";
import { secondaryProgram } from "./secondary.js";

const DIRECTORY = fileURLToPath(new URL("../../../docs/man/", import.meta.url));

const neverRun = (): never => {
  throw new Error("a man page does not start a node");
};
mkdirSync(DIRECTORY, { recursive: true });
for (const program of [primaryProgram(neverRun), secondaryProgram(neverRun)]) {
  writeFileSync(`${DIRECTORY}${program.name}.1`, manPage(program, readVersion()));
}

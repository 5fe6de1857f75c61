/** Prints the closing line of a CI run from what the reporters left: `N passed, N failed`. */
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";

const [directory, status] = process.argv.slice(2);
let passed = 0;
let failed = 0;
for (const name of readdirSync(directory)) {
  const { passes, failures } = JSON.parse(readFileSync(join(directory, name), "utf8"));
  passed += passes;
  failed += failures;
}
// Whatever else failed (a check, the build, an install) counts as one.
if (status !== "0" && failed === 0) failed = 1;
process.stdout.write(`${passed} passed, ${failed} failed\n`);
process.exitCode = failed > 0 || passed === 0 ? 1 : 0;

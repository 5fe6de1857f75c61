/** `npm run fuzz -- --seconds 60`: attacks server and client for so long; SEED=n repeats a run. */
import { inspect } from "node:util";
import yargs from "yargs";

import { SEED } from "../tools/seed.js";
import { fuzz } from "./fuzzer.js";

const { seconds, target, round } = await yargs(process.argv.slice(2))
  .scriptName("npm run fuzz --")
  .usage("$0 [options]\n\nSends damaged conversations to the NBD server and client. SEED=n repeats a run.")
  .options({
    seconds: { type: "number", default: 60, describe: "how long" },
    target: { type: "string", describe: "this one alone" },
    round: { type: "number", describe: "this round alone" },
  })
  .strict()
  .parseAsync();

const { rounds, finding } = await fuzz({
  seed: SEED,
  seconds,
  ...(target !== undefined && { target }),
  ...(round !== undefined && { round }),
});
for (const [name, count] of rounds) process.stdout.write(`${name}: ${count} rounds\n`);
if (finding !== null) {
  const { target: name, round: number, error } = finding;
  const repeat = `SEED=${SEED} npm run fuzz -- --target ${name} --round ${number}`;
  process.stderr.write(`${inspect(error)}\nrepeat with: ${repeat}\n`);
  process.exitCode = 1;
}

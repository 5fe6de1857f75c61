/** The fuzzer of `npm run fuzz`, for a few seconds. What it once found is in test/regressions/. */
import { expect } from "chai";

import { fuzz } from "../fuzz/fuzzer.js";
import { SEED } from "../tools/seed.js";

const SECONDS = 10;

describe("NBD under damaged conversations", () => {
  it(`keeps its parsers, its server, repl-primary and its client sound for ${SECONDS} s, seed ${SEED}`, async () => {
    const { rounds, finding } = await fuzz({ seed: SEED, seconds: SECONDS });
    const repeat = `SEED=${SEED} npm run fuzz -- --target ${finding?.target ?? ""} --round ${finding?.round ?? ""}`;
    if (finding !== null) throw new Error(`repeat with: ${repeat}`, { cause: finding.error });
    expect([...rounds.keys()]).to.have.length(6);
    for (const [target, count] of rounds) expect(count, target).to.be.above(0);
  });
});

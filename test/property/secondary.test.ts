/** Random histories of a secondary against a model in memory. */
import fc from "fast-check";

import { PROPERTY_TIMEOUT_MS, propertyOptions } from "./options.js";
import { type Request, requestOn } from "./requests.js";
import { runSecondary, type Step } from "./secondary-run.js";

/** None a multiple of much: one within a page, one around the length from which holes are asked for, one beyond a step of copying. */
const SIZES = [1, 5000, 16 * 4096, 64 * 1024 + 1, 70_001, 1024 * 1024 + 4097] as const;

function loadOn(
  sizes: readonly number[],
  maxLength: number,
): { primary: fc.Arbitrary<Request[]>; view: fc.Arbitrary<Request[]> } {
  const requests = fc.array(requestOn(sizes), { maxLength });
  return { primary: requests, view: requests };
}

function stepOn(sizes: readonly number[]): fc.Arbitrary<Step> {
  const load = loadOn(sizes, 6);
  return fc.oneof(
    {
      weight: 10,
      arbitrary: fc.record({ kind: fc.constant("batch" as const), ...load, flush: fc.boolean() }),
    },
    { weight: 5, arbitrary: fc.record({ kind: fc.constant("checkpoint" as const), ...load }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("restart" as const) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("stop and start" as const) }) },
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant("crash" as const),
        ...load,
        changes: fc.nat({ max: 40 }),
        losesPower: fc.boolean(),
        during: fc.constantFrom(
          "nothing" as const,
          "checkpoint" as const,
          "checkpoint" as const,
          "failover to checkpoint" as const,
          "failover to latest" as const,
        ),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant("failover" as const),
        to: fc.constantFrom("checkpoint" as const, "latest" as const),
        fails: fc.boolean(),
        view: load.view,
      }),
    },
  );
}

const history = fc
  .array(fc.constantFrom(...SIZES), { minLength: 1, maxLength: 3 })
  .chain((sizes) => fc.tuple(fc.constant(sizes), fc.array(stepOn(sizes), { maxLength: 25 }), fc.nat()));

describe("property: a secondary", function () {
  this.timeout(PROPERTY_TIMEOUT_MS);

  it("shows and keeps what its model does, whatever is written, checkpointed, restarted, crashed and failed over", () =>
    fc.assert(
      fc.asyncProperty(history, ([sizes, steps, jitterSeed]) => runSecondary(sizes, steps, jitterSeed)),
      propertyOptions(250),
    ));
});

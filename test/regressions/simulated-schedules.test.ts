/** Schedules of test/simulation that once went wrong, by their seed and number of steps, with what was wrong. */
import { runSchedule } from "../simulation/schedule.js";

const ONCE_WRONG = [
  // Killed between renaming the dirty maps of two disks, a primary had to copy everything.
  { seed: 45, steps: 20 },
  { seed: 1240, steps: 40 },
  // The old maps of a node that had come back were removed after it was promoted, and the new ones with them.
  { seed: 2672, steps: 40 },
  // A power loss took back what the primary had resynced from its page cache, and the dirty map had forgotten it.
  { seed: 1109, steps: 40 },
] as const;

describe("regressions: schedules that once went wrong", () => {
  for (const { seed, steps } of ONCE_WRONG) {
    it(`seed ${seed}, ${steps} steps`, async () => {
      await runSchedule(seed, steps);
    });
  }
});

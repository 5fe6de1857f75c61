/** Schedules of test/simulation that once went wrong, by their seed and number of steps, with what was wrong. */
import { runSchedule } from "../simulation/schedule.js";

const ONCE_WRONG = [
  // Killed between renaming the dirty maps of two disks, a primary had to copy everything.
  { seed: 45, steps: 20, hasFaults: false },
  { seed: 1240, steps: 40, hasFaults: false },
  // The old maps of a node that had come back were removed after it was promoted, and the new ones with them.
  { seed: 2672, steps: 40, hasFaults: false },
  // A power loss took back what the primary had resynced from its page cache, and the dirty map had forgotten it.
  { seed: 1109, steps: 40, hasFaults: false },
  // A replica lost its power between the handshake and the connections to its disks, which then went to its next life: whoever
  // writes unannounced has no dirty map, and the primary had to copy everything.
  { seed: 3840, steps: 40, hasFaults: true },
] as const;

describe("regressions: schedules that once went wrong", () => {
  for (const { seed, steps, hasFaults } of ONCE_WRONG) {
    it(`seed ${seed}, ${steps} steps${hasFaults ? ", with faults" : ""}`, async () => {
      await runSchedule(seed, steps, { hasFaults });
    });
  }
});

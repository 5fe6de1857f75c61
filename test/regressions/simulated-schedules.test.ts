/** Schedules of test/simulation that once went wrong, by their seed and number of steps, with what was wrong. */
import { runSchedule } from "../simulation/schedule.js";

const ONCE_WRONG = [
  // Killed between renaming the dirty maps of two disks, a primary had to copy everything.
  { seed: 45, steps: 20, faults: "none" },
  { seed: 1240, steps: 40, faults: "none" },
  // The old maps of a node that had come back were removed after it was promoted, and the new ones with them.
  { seed: 2672, steps: 40, faults: "none" },
  // A power loss took back what the primary had resynced from its page cache, and the dirty map had forgotten it.
  { seed: 1109, steps: 40, faults: "none" },
  // A replica lost its power between the handshake and the connections to its disks, which then went to its next life: whoever
  // writes unannounced has no dirty map, and the primary had to copy everything.
  { seed: 3840, steps: 40, faults: "requests" },
  // A replica that refused writes was shaken hands with seven times a second, for ever.
  { seed: 148, steps: 40, faults: "requests" },
  // Likewise one that refused flushes, in ack mode sync: it was up to date for a moment each time.
  { seed: 100908, steps: 40, faults: "all" },
  // That a checkpoint was lost was known after a restart from the page cache, where a failed sync had left it, and no more after a power loss.
  { seed: 205434, steps: 40, faults: "all" },
  // What a replica acknowledged as its link broke was held for flushed by the next one, after the replica had lost it.
  { seed: 204391, steps: 40, faults: "all" },
  // A view showed a checkpoint that a failed flush had taken parts of, and a primary took one of what its disk had lost.
  { seed: 12, steps: 40, faults: "all" },
  { seed: 127, steps: 40, faults: "all" },
  // A start that failed was taken for one, and what was on record could not be started any more.
  { seed: 143, steps: 40, faults: "all" },
  // A failover was on record, and neither done nor failed.
  { seed: 14, steps: 40, faults: "all" },
  { seed: 302, steps: 40, faults: "all" },
  // A checkpoint was durable and counted as lost, because files of the one before could not be renamed.
  { seed: 12222, steps: 40, faults: "all" },
  // A checkpoint was gone to that a mark, of which a part was written, gave up at the next start.
  { seed: 12023, steps: 40, faults: "all" },
  // A dirty map that could be neither written nor removed was trusted by the next start; one that was removed was made anew, empty.
  { seed: 10520, steps: 40, faults: "all" },
  { seed: 20564, steps: 40, faults: "all" },
  // The model took a write for missing at the replica that a failed flush had brought back in place of a newer one.
  { seed: 50195, steps: 40, faults: "all" },
  // The model let a failed sync take back what was written once more since, and durable.
  { seed: 63346, steps: 40, faults: "all" },
  // The model expected of two writes to a view that overlapped and were under way together that the later one stays.
  { seed: 5300235, steps: 40, faults: "all" },
  // The model of a state directory read behind the end of a log that was cut.
  { seed: 1028508245, steps: 40, faults: "all" },
  // A view showed holes where a sync of its data file had failed.
  { seed: 24123, steps: 40, faults: "all" },
  // The model took a replica for refused that was being started anew between its answer and its exports.
  { seed: 1735771242, steps: 40, faults: "none" },
  // A primary that ended twice while it renamed its dirty maps had to copy everything.
  { seed: 43000586, steps: 40, faults: "requests" },
] as const;

describe("regressions: schedules that once went wrong", () => {
  for (const { seed, steps, faults } of ONCE_WRONG) {
    it(`seed ${seed}, ${steps} steps${faults === "none" ? "" : `, with faults of ${faults}`}`, async () => {
      await runSchedule(seed, steps, { faults });
    });
  }
});

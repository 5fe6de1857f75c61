/** Mocha's spec reporter, which also leaves the counts of the run in a file for test/tools/count-results.mjs. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import Mocha from "mocha";

class CountingReporter extends Mocha.reporters.Spec {
  constructor(runner: Mocha.Runner, options: Mocha.MochaOptions) {
    super(runner, options);
    runner.once(Mocha.Runner.constants.EVENT_RUN_END, () => {
      const directory = process.env["MOCHA_SUMMARY_DIRECTORY"];
      if (directory === undefined) return;
      const { passes, failures } = this.stats;
      writeFileSync(join(directory, `${process.pid}.json`), JSON.stringify({ passes, failures }));
    });
  }
}

// Mocha takes a reporter that a module exports as its CommonJS value or as "module.exports" of an ES module.
export { CountingReporter as "module.exports" };

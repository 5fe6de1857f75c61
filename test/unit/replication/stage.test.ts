/** Every stage with every event, on both sides; texts are those of QEMU 7.2's block/replication.c. */
import { expect } from "chai";

import { StateError } from "../../../src/errors.js";
import {
  type Effect,
  type Event,
  hasChangedDisks,
  initialState,
  isPromoted,
  type Mode,
  resumedStage,
  type Stage,
  type State,
  step,
} from "../../../src/replication/stage.js";

const STAGES = ["none", "running", "failover", "failover-failed", "done"] as const satisfies readonly Stage[];
const NOT_RUNNING = "Block replication is not running";
const RUNNING_OR_DONE = "Block replication is running or done";

const EVENTS = {
  "start primary": { type: "start", mode: "primary" },
  "start secondary": { type: "start", mode: "secondary" },
  checkpoint: { type: "checkpoint" },
  "get-error": { type: "get-error" },
  stop: { type: "stop", failover: null },
  "failover to checkpoint": { type: "stop", failover: "checkpoint" },
  "failover to latest": { type: "stop", failover: "latest" },
  "io-error": { type: "io-error" },
  "errors-mended": { type: "errors-mended" },
  "begin-failed": { type: "begin-failed" },
  "commit-succeeded": { type: "commit-succeeded" },
  "commit-failed": { type: "commit-failed" },
} as const satisfies Record<string, Event>;
type EventName = keyof typeof EVENTS;

/** What comes of it: "= STAGE effects", with an exclamation mark where an error is on record; or the refusal. */
type Row = Record<Stage, string>;

const SECONDARY: Record<EventName, Row> = {
  "start primary": {
    none: "The parameter mode's value is invalid, needs 1, but got 0",
    running: RUNNING_OR_DONE,
    failover: "= failover",
    "failover-failed": RUNNING_OR_DONE,
    done: "= done",
  },
  "start secondary": {
    none: "= running begin-epoch",
    running: RUNNING_OR_DONE,
    failover: "= failover",
    "failover-failed": RUNNING_OR_DONE,
    done: "= done",
  },
  checkpoint: {
    none: NOT_RUNNING,
    running: "= running begin-epoch",
    failover: "= failover",
    "failover-failed": NOT_RUNNING,
    done: "= done",
  },
  "get-error": {
    none: NOT_RUNNING,
    running: "= running",
    failover: "= failover",
    "failover-failed": "= failover-failed",
    done: "= done",
  },
  stop: {
    none: NOT_RUNNING,
    running: "= none drop-overlays",
    failover: "= failover",
    "failover-failed": NOT_RUNNING,
    done: "= done",
  },
  "failover to checkpoint": {
    none: NOT_RUNNING,
    running: "= failover to checkpoint fence commit",
    failover: "= failover",
    "failover-failed": "= failover to checkpoint fence commit",
    done: "= done",
  },
  "failover to latest": {
    none: NOT_RUNNING,
    running: "= failover to latest fence commit",
    failover: "= failover",
    "failover-failed":
      "the failover to checkpoint has changed the disks already: it can only be tried again as it was",
    done: "= done",
  },
  "io-error": {
    none: "= none",
    running: "= running !",
    failover: "= failover !",
    "failover-failed": "= failover-failed !",
    done: "= done",
  },
  "errors-mended": {
    none: "= none",
    running: "= running",
    failover: "= failover",
    "failover-failed": "= failover-failed",
    done: "= done",
  },
  "begin-failed": {
    none: "stage is none, not failover",
    running: "stage is running, not failover",
    failover: "= failover-failed !",
    "failover-failed": "stage is failover-failed, not failover",
    done: "stage is done, not failover",
  },
  "commit-succeeded": {
    none: "stage is none, not failover",
    running: "stage is running, not failover",
    failover: "= done",
    "failover-failed": "stage is failover-failed, not failover",
    done: "stage is done, not failover",
  },
  "commit-failed": {
    none: "stage is none, not failover",
    running: "stage is running, not failover",
    failover: "= failover-failed !",
    "failover-failed": "stage is failover-failed, not failover",
    done: "stage is done, not failover",
  },
};

/** Where a primary differs: it has no epochs, no overlays and nothing to commit. */
const PRIMARY: Partial<Record<EventName, Partial<Row>>> = {
  "start primary": { none: "= running" },
  "start secondary": { none: "The parameter mode's value is invalid, needs 0, but got 1" },
  checkpoint: { none: "= none", running: "= running", "failover-failed": "= failover-failed" },
  stop: { running: "= none" },
  "failover to checkpoint": { running: "= done" },
  "failover to latest": { running: "= done" },
};

function stateIn(mode: Mode, stage: Stage, hasError: boolean): State {
  const isAfterFailover = stage !== "none" && stage !== "running";
  return { mode, stage, hasError, target: mode === "secondary" && isAfterFailover ? "checkpoint" : null };
}

function describeStep(before: State, [after, effects]: readonly [State, readonly Effect[]]): string {
  const target = after.target !== null && effects.includes("commit") ? ["to", after.target] : [];
  return ["=", after.stage, ...target, ...effects, ...(after.hasError && !before.hasError ? ["!"] : [])].join(
    " ",
  );
}

function outcomeOf(state: State, event: Event): string {
  try {
    return describeStep(state, step(state, event));
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

describe("stage machine", () => {
  for (const mode of ["secondary", "primary"] as const) {
    for (const [name, event] of Object.entries(EVENTS) as [EventName, Event][]) {
      it(`of a ${mode} at ${name}`, () => {
        for (const stage of STAGES) {
          if (mode === "primary" && stage.startsWith("failover")) continue;
          const expected =
            (mode === "primary" ? PRIMARY[name]?.[stage] : undefined) ?? SECONDARY[name][stage];
          expect(outcomeOf(stateIn(mode, stage, false), event), stage).to.equal(expected);
        }
      });
    }
  }

  it("begins in stage none, without a target and an error", () => {
    expect(initialState("primary")).to.deep.equal({
      mode: "primary",
      stage: "none",
      target: null,
      hasError: false,
    });
  });

  it("tells of a swallowed error as QEMU does, until it is mended, replication is stopped or started", () => {
    for (const stage of ["running", "failover", "failover-failed", "done"] as const) {
      expect(outcomeOf(stateIn("secondary", stage, true), EVENTS["get-error"]), stage).to.equal(
        "I/O error occurred",
      );
    }
    expect(outcomeOf(stateIn("secondary", "none", true), EVENTS["get-error"])).to.equal(NOT_RUNNING);
    const running = stateIn("secondary", "running", true);
    for (const name of ["errors-mended", "stop", "failover to latest"] as const) {
      expect(step(running, EVENTS[name])[0].hasError, name).to.equal(false);
    }
    expect(step(running, EVENTS.checkpoint)[0].hasError, "a checkpoint alone mends nothing").to.equal(true);
    expect(step(stateIn("secondary", "failover", true), EVENTS["commit-succeeded"])[0].hasError).to.equal(
      false,
    );
  });

  it("refuses with StateError what an operator may ask at the wrong time, and asserts the rest", () => {
    for (const [name, event] of Object.entries(EVENTS)) {
      for (const stage of STAGES) {
        try {
          step(stateIn("secondary", stage, false), event);
        } catch (error) {
          expect(error instanceof StateError, `${name} in ${stage}`).to.equal(
            !/^(begin|commit)-/.test(event.type),
          );
        }
      }
    }
  });

  it("tries a failed failover again to the same target only", () => {
    const failed: State = { mode: "secondary", stage: "failover-failed", target: "latest", hasError: true };
    expect(outcomeOf(failed, EVENTS["failover to latest"])).to.equal("= failover to latest fence commit");
    expect(outcomeOf(failed, EVENTS["failover to checkpoint"])).to.equal(
      "the failover to latest has changed the disks already: it can only be tried again as it was",
    );
  });

  it("tries one that could not begin again to either target, and doesn't go back on it", () => {
    const begun: State = { mode: "secondary", stage: "failover", target: "latest", hasError: false };
    const [failed] = step(begun, EVENTS["begin-failed"]);
    expect(failed).to.deep.equal({ ...begun, stage: "failover-failed", target: null, hasError: true });
    for (const target of ["checkpoint", "latest"] as const) {
      expect(outcomeOf(failed, EVENTS[`failover to ${target}`])).to.equal(
        `= failover to ${target} fence commit`,
      );
    }
    expect(outcomeOf(failed, EVENTS.stop)).to.equal(NOT_RUNNING);
  });

  it("takes a failover that was asked for up again after a restart, and knows which may have changed the disks", () => {
    const stages = [
      ["running", null, "running", false],
      ["running", "latest", "failover", false],
      ["failover-failed", null, "failover-failed", false],
      ["failover-failed", "latest", "failover-failed", true],
      ["failover", "latest", "failover", true],
      ["done", "latest", "done", true],
    ] as const;
    for (const [stage, failoverTarget, resumed, hasChanged] of stages) {
      const recorded = { stage, failoverTarget };
      const what = `${stage} to ${failoverTarget ?? "none"}`;
      expect(resumedStage(recorded), what).to.equal(resumed);
      expect(hasChangedDisks(recorded), what).to.equal(hasChanged);
    }
  });

  it("leaves replication for good with failover and done, not with a failover that failed", () => {
    expect(STAGES.filter(isPromoted)).to.deep.equal(["failover", "done"]);
  });

  it("never changes the state it was given", () => {
    for (const stage of STAGES) {
      for (const event of Object.values(EVENTS)) {
        const state = Object.freeze(stateIn("secondary", stage, true));
        outcomeOf(state, event);
        expect(state).to.deep.equal(stateIn("secondary", stage, true));
      }
    }
  });
});

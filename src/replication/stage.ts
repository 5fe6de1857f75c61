/**
 * The stages of replication and what takes a node from one to the next: QEMU's block/replication.c as a pure state
 * machine for all disks of a node at once. It knows no I/O: it says what has to be done, others do it.
 *
 *           start                stop{failover}               committed
 *   none ──────────► running ───────────────────► failover ─────────────► done
 *    ▲                  │            begin-failed, │      ▲
 *    └──── stop ────────┘            commit-failed ▼      │ stop{failover}
 *                                           failover-failed
 *
 * As in QEMU, a node that is being or has been promoted ignores start, checkpoint and stop without an error: the manager
 * talks to all nodes alike. Unlike QEMU, stop without failover goes back to `none`, so that replication can be started
 * again; and a failed failover can be tried again, to either target as long as it has changed nothing.
 */
import { StateError } from "../errors.js";

export type Stage = "none" | "running" | "failover" | "failover-failed" | "done";
export type Mode = "primary" | "secondary";
export type FailoverTarget = "checkpoint" | "latest";

export interface State {
  readonly mode: Mode;
  readonly stage: Stage;
  /** Set from failover on, but for one that could not begin: it has changed nothing. */
  readonly target: FailoverTarget | null;
  /** Whether an I/O error was swallowed since the start (QEMU: BDRVReplicationState.error). */
  readonly hasError: boolean;
}

export type Event =
  | { readonly type: "start"; readonly mode: Mode }
  | { readonly type: "checkpoint" }
  | { readonly type: "get-error" }
  | { readonly type: "stop"; readonly failover: FailoverTarget | null }
  | { readonly type: "io-error" }
  | { readonly type: "errors-mended" }
  | { readonly type: "begin-failed" }
  | { readonly type: "commit-succeeded" }
  | { readonly type: "commit-failed" };

/** As it is on record (failover.ts). */
export interface RecordedStage {
  readonly stage: Stage;
  readonly failoverTarget: FailoverTarget | null;
}

/** What to do for an event, in this order; all of it before the new state counts. */
export type Effect =
  /** Begin an epoch with empty overlays. */
  | "begin-epoch"
  /** Make the view fail again and drop the overlays, keeping everything received. */
  | "drop-overlays"
  /** Close the replication export to the old primary. */
  | "fence"
  /** Merge the overlays into the disk. */
  | "commit";

export type Step = readonly [state: State, effects: readonly Effect[]];

export function initialState(mode: Mode): State {
  return { mode, stage: "none", target: null, hasError: false };
}

/** @throws StateError with QEMU's texts where QEMU refuses */
export function step(state: State, event: Event): Step {
  switch (event.type) {
    case "start":
      return start(state, event.mode);
    case "checkpoint":
      return checkpoint(state);
    case "get-error":
      return getError(state);
    case "stop":
      return stop(state, event.failover);
    case "io-error":
      return state.stage === "none" || state.stage === "done"
        ? unchanged(state)
        : [{ ...state, hasError: true }, []];
    case "errors-mended":
      return [{ ...state, hasError: false }, []];
    case "begin-failed":
      return expectStage(state, "failover", [
        { ...state, stage: "failover-failed", target: null, hasError: true },
        [],
      ]);
    case "commit-succeeded":
      return expectStage(state, "failover", [{ ...state, stage: "done", hasError: false }, []]);
    case "commit-failed":
      return expectStage(state, "failover", [{ ...state, stage: "failover-failed", hasError: true }, []]);
  }
}

/** The stage in which a restart takes the node up: a failover that was asked for is begun. */
export function resumedStage({ stage, failoverTarget }: RecordedStage): Stage {
  return stage === "running" && failoverTarget !== null ? "failover" : stage;
}

/** Whether a failover may have changed the disks. */
export function hasChangedDisks({ stage, failoverTarget }: RecordedStage): boolean {
  return isPromoted(stage) || (stage === "failover-failed" && failoverTarget !== null);
}

/** Whether the node has left replication for good: it was promoted, or is about to be. */
export function isPromoted(stage: Stage): boolean {
  return stage === "failover" || stage === "done";
}

function unchanged(state: State): Step {
  return [state, []];
}

function start(state: State, mode: Mode): Step {
  if (isPromoted(state.stage)) return unchanged(state);
  if (state.stage !== "none") throw new StateError("already-running", "Block replication is running or done");
  if (state.mode !== mode) {
    throw new StateError(
      "wrong-mode",
      `The parameter mode's value is invalid, needs ${modeNumber(state.mode)}, but got ${modeNumber(mode)}`,
    );
  }
  const next: State = { ...state, stage: "running", hasError: false };
  return [next, state.mode === "secondary" ? ["begin-epoch"] : []];
}

function checkpoint(state: State): Step {
  if (isPromoted(state.stage) || state.mode === "primary") return unchanged(state);
  if (state.stage !== "running") throw new StateError("not-running", "Block replication is not running");
  return [state, ["begin-epoch"]];
}

function getError(state: State): Step {
  if (state.stage === "none") throw new StateError("not-running", "Block replication is not running");
  if (state.hasError) throw new StateError("io-error", "I/O error occurred");
  return unchanged(state);
}

function stop(state: State, failover: FailoverTarget | null): Step {
  if (isPromoted(state.stage)) return unchanged(state);
  const isRetry = state.stage === "failover-failed" && failover !== null;
  if (state.stage !== "running" && !isRetry) {
    throw new StateError("not-running", "Block replication is not running");
  }
  if (isRetry && state.target !== null && failover !== state.target) {
    throw new StateError(
      "other-target",
      `the failover to ${state.target} has changed the disks already: it can only be tried again as it was`,
    );
  }
  if (failover === null) {
    const effects: Effect[] = state.mode === "secondary" ? ["drop-overlays"] : [];
    return [{ ...state, stage: "none", hasError: false }, effects];
  }
  if (state.mode === "primary") return [{ ...state, stage: "done", hasError: false }, []];
  return [{ ...state, stage: "failover", target: failover, hasError: false }, ["fence", "commit"]];
}

/** QEMU's enum ReplicationMode, which its error text shows. */
function modeNumber(mode: Mode): number {
  return mode === "primary" ? 0 : 1;
}

function expectStage(state: State, stage: Stage, next: Step): Step {
  if (state.stage !== stage) throw new Error(`stage is ${state.stage}, not ${stage}`);
  return next;
}

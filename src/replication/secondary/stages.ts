/**
 * The stage of a secondary, and that what takes it from one to the next is carried out (see stage.ts).
 *
 * Invariant: a stage counts, and is told, only after all that leads to it is done; if that fails, the node stays where it was.
 */
import type { SecondaryMetadata } from "../../meta/metadata.js";
import {
  type Effect,
  type Event,
  type FailoverTarget,
  initialState,
  type Stage,
  type State,
  step,
} from "../stage.js";

export interface EpochToBegin {
  /** null: the next. */
  readonly number: number | null;
  /** The history of the data in it, where it differs. */
  readonly lineage: Partial<SecondaryMetadata>;
}

export interface SecondaryStagesParts {
  beginEpoch(begin: EpochToBegin): Promise<void>;
  dropOverlays(): Promise<void>;
  /** The replication export is closed to the primary. */
  fence(target: FailoverTarget): Promise<void>;
  /** The merge begins, which goes on in the background. */
  commit(target: FailoverTarget): Promise<void>;
  changed(stage: Stage): void;
}

export class SecondaryStages {
  readonly #parts: SecondaryStagesParts;
  #state: State = initialState("secondary");

  constructor(parts: SecondaryStagesParts) {
    this.#parts = parts;
  }

  get stage(): Stage {
    return this.#state.stage;
  }

  /** @throws StateError with QEMU's texts if an error was swallowed or replication is not running */
  getError(): void {
    step(this.#state, { type: "get-error" });
  }

  /** @param begin the epoch to begin, if one begins */
  async apply(event: Event, begin: EpochToBegin = { number: null, lineage: {} }): Promise<void> {
    const [next, effects] = step(this.#state, event);
    for (const effect of effects) await this.#effect(effect, next.target ?? "checkpoint", begin);
    this.#become(next);
  }

  /** Something happened that leaves nothing to do. */
  happened(type: Exclude<Event["type"], "start" | "stop" | "checkpoint" | "get-error">): void {
    this.#become(step(this.#state, { type })[0]);
  }

  /** What the metadata says after a restart. */
  recovered(stage: Stage, target: FailoverTarget | null): void {
    this.#state = { ...this.#state, stage, target, hasError: stage === "failover-failed" };
  }

  #become(next: State): void {
    const isChange = next.stage !== this.#state.stage;
    this.#state = next;
    if (isChange) this.#parts.changed(next.stage);
  }

  #effect(effect: Effect, target: FailoverTarget, begin: EpochToBegin): Promise<void> {
    switch (effect) {
      case "begin-epoch":
        return this.#parts.beginEpoch(begin);
      case "drop-overlays":
        return this.#parts.dropOverlays();
      case "fence":
        return this.#parts.fence(target);
      case "commit":
        return this.#parts.commit(target);
    }
  }
}

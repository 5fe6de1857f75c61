/**
 * The secondary's half of a switch-over (see take-over.ts): the primary hands over at a checkpoint, and asks as often as it has to.
 */
import { StateError } from "../../errors.js";
import type { SecondaryMetadata } from "../../meta/metadata.js";
import type { DiskGroup } from "./disk-group.js";
import type { EpochChanger } from "./epoch-changer.js";
import type { MetadataKeeper } from "../metadata-keeper.js";
import type { SecondaryCheckpoints } from "./checkpoints.js";
import type { SecondaryStages } from "./stages.js";
import { isPromoted } from "../stage.js";
import { TAKE_OVER_FAILED } from "../protocol.js";
import type { WriterSessions } from "./writer-sessions.js";

export interface SecondaryTakeOverParts {
  readonly stages: SecondaryStages;
  readonly metadata: MetadataKeeper<SecondaryMetadata>;
  readonly group: DiskGroup;
  readonly epochs: EpochChanger;
  readonly checkpoints: SecondaryCheckpoints;
  readonly sessions: WriterSessions;
}

export class SecondaryTakeOver {
  readonly #parts: SecondaryTakeOverParts;

  constructor(parts: SecondaryTakeOverParts) {
    this.#parts = parts;
  }

  /** A primary hands over at a checkpoint. @throws StateError if this node can't take over: nothing has changed then */
  async begin(primary: string, epoch: number): Promise<void> {
    const { stages } = this.#parts;
    if (isPromoted(stages.stage) || stages.stage === "failover-failed") return;
    const refusal = this.#refusal(primary, epoch);
    if (refusal !== null) throw new StateError("no-take-over", `take-over refused: ${refusal}`);
    await stages.apply({ type: "stop", failover: "latest" });
  }

  /** @returns this node's new generation @throws StateError if it has not taken over, or in another epoch, or that is undecided */
  outcome(epoch: number): string {
    const { stages, metadata } = this.#parts;
    const { generation, epoch: number } = metadata.current;
    if (stages.stage === "failover-failed") {
      const remedy = "mend what its log names, then fail over there again";
      throw new StateError(TAKE_OVER_FAILED, `the take-over has begun and failed: ${remedy}`);
    }
    if (stages.stage !== "done" || generation === null || number !== epoch) {
      throw new StateError(
        "no-take-over",
        `take-over refused: the secondary was promoted in epoch ${number}`,
      );
    }
    return generation;
  }

  #refusal(primary: string, epoch: number): string | null {
    const { group, epochs, checkpoints, sessions } = this.#parts;
    const refusal = checkpoints.obstacle();
    if (refusal !== null) return refusal;
    if (!sessions.isLast(primary)) return "another primary introduced itself last";
    if (epochs.number !== epoch) return `the secondary is in epoch ${epochs.number}, not ${epoch}`;
    const isSame = group.epoch?.overlays.every(({ hidden }) => hidden.mappedBytes === 0) === true;
    return isSame && group.pendingBytes === 0 ? null : "something was received since the checkpoint";
  }
}

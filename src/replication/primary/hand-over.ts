/**
 * Switch-over, as the primary does it: hands its disks over to the replica at a checkpoint.
 *
 * Invariants:
 * - From the checkpoint on no guest's change is made here before it is known that the replica has not taken over; if it has,
 *   or nobody knows, none is made ever again.
 * - A node that handed over is on record as the other one's secondary before anybody is told.
 */
import type { Logger } from "pino";
import type { Clock } from "../../clock.js";
import { describeError, LinkError, StateError } from "../../errors.js";
import type { Endpoint } from "../../net/endpoint.js";
import type { PrimaryCheckpoints } from "./checkpoints.js";
import type { PrimaryDisk } from "./disk.js";
import type { PrimaryKeeper } from "./keeper.js";
import type { ReplicaAttachment } from "./replica-attachment.js";
import type { ReplicaNetwork } from "./replica-network.js";
import { requestTakeOver } from "./take-over.js";

export interface HandOverParts {
  readonly disks: readonly PrimaryDisk[];
  readonly attachment: ReplicaAttachment;
  readonly checkpoints: PrimaryCheckpoints;
  readonly metadata: PrimaryKeeper;
  readonly timeoutMs: number;
  readonly clock: Clock;
  readonly network: ReplicaNetwork;
  readonly log: Logger;
}

export class HandOver {
  readonly #parts: HandOverParts;
  #isUnderWay = false;
  #isDone = false;
  #isUndecided = false;

  constructor(parts: HandOverParts) {
    this.#parts = parts;
  }

  /** Whether both sides have the same, durably, and no change is made before it is known which of them goes on. */
  get isUnderWay(): boolean {
    return this.#isUnderWay;
  }

  /** Whether another node has taken over. */
  get isDone(): boolean {
    return this.#isDone;
  }

  /** Whether another node may have taken over, and nobody knows. */
  get isUndecided(): boolean {
    return this.#isUndecided;
  }

  /** Whether the disks are, or may be, another node's: guests ask there. */
  get isElsewhere(): boolean {
    return this.#isDone || this.#isUndecided;
  }

  /** @throws StateError if the disks are, or may be, another node's */
  refuseAfterwards(): void {
    if (!this.isElsewhere) return;
    throw new StateError("handed-over", "this node has handed its disks over, or may have: it ends");
  }

  /**
   * @returns the generation of the node that took over, and how long guests waited
   * @throws StateError or QmpError if it can't be done: everything goes on as before; LinkError "undecided"
   */
  async run(): Promise<{ readonly generation: string; readonly pauseMs: number }> {
    const { attachment, checkpoints, clock } = this.#parts;
    const control = attachment.replica?.control ?? null;
    if (control === null) {
      const refusal = checkpoints.refusal() ?? "no replica is attached";
      throw new StateError("no-switch-over", `switch-over refused: ${refusal}`);
    }
    const startMs = clock.nowMs();
    const generation = await checkpoints.takeAndHold(async (epoch) => {
      this.#isUnderWay = true;
      try {
        return await this.#handOver(control, epoch);
      } finally {
        this.#isUnderWay = false;
      }
    });
    return { generation, pauseMs: clock.nowMs() - startMs };
  }

  /** The gate is shut and both sides are the same, durably. */
  async #handOver(control: Endpoint, epoch: number): Promise<string> {
    const { disks, attachment, metadata, log, timeoutMs, clock, network } = this.#parts;
    await attachment.leave();
    let generation: string;
    try {
      const primary = metadata.current.uuid;
      generation = await requestTakeOver({ control, primary, epoch, timeoutMs, clock, network });
    } catch (error) {
      this.#isUndecided = error instanceof LinkError && error.code === "undecided";
      // It may have: whatever guests write from now on could be a second history.
      if (this.#isUndecided) for (const { mirror } of disks) mirror.handOver();
      else await attachment.resume();
      throw error;
    }
    for (const { mirror } of disks) mirror.handOver();
    this.#isDone = true;
    log.info({ epoch, generation }, "handed over to the secondary");
    await metadata.comeBack(await this.#closeMaps());
    return generation;
  }

  /** @returns the tenure of the dirty maps; null: they don't tell what the disks may lack, and the node comes back by a full copy */
  async #closeMaps(): Promise<string | null> {
    const { disks, log } = this.#parts;
    let tenure = disks[0]?.dirty.tenure ?? null;
    for (const { name, local, dirty } of disks) {
      try {
        await local.flush();
        await dirty.close();
      } catch (error) {
        // The other node has taken over with everything all the same: that has to be on record before anything else.
        tenure = null;
        log.error(
          { disk: name, error: describeError(error) },
          "not flushed: this node comes back by a full copy",
        );
      }
    }
    return tenure;
  }
}

/**
 * Copies to the replica what all disks lack, over one link: they share its window, and what asks the replica what it has already.
 */
import type { Logger } from "pino";
import type { BlockDevice } from "../../block/device.js";
import { settleAll } from "../../block/settle-all.js";
import type { Clock } from "../../clock.js";
import { asError } from "../../errors.js";
import { CopyWindow } from "./copy-window.js";
import type { PrimaryDisk } from "./disk.js";
import { KnownContent } from "./known-content.js";
import type { RateLimit } from "./rate-limit.js";
import type { ReplicaDigests } from "./replica-digests.js";
import { Resync } from "./resync.js";

export interface ResyncRoundOptions {
  readonly disks: readonly PrimaryDisk[];
  /** Of the disks, in their order; checked. */
  readonly replicas: readonly BlockDevice[];
  /** Closed with the round; null: the replica can't be asked what it has. */
  readonly digests: ReplicaDigests | null;
  /** The replica was asked, and has not answered. */
  readonly onSilent: () => void;
  readonly rate: RateLimit;
  readonly clock: Clock;
  readonly log: Logger;
}

export class ResyncRound {
  readonly resyncs: readonly Resync[];
  readonly #digests: ReplicaDigests | null;

  constructor({ disks, replicas, digests, onSilent, rate, clock, log }: ResyncRoundOptions) {
    const window = new CopyWindow(clock);
    this.#digests = digests;
    this.resyncs = disks.flatMap((disk, index) => {
      const replica = replicas[index];
      if (replica === undefined) return [];
      const known = digests === null ? null : KnownContent.of(disk.name, digests, log, onSilent);
      return [new Resync(disk, replica, { rate, window, clock, known })];
    });
  }

  /**
   * Resolves when the replica lacks nothing.
   * @param ended told of each disk's copy
   * @throws what the first one throws that fails, when all have ended
   */
  async run(ended: (resync: Resync, error: Error | null) => void): Promise<void> {
    const runs = this.resyncs.map(async (resync) => {
      try {
        await resync.run();
      } catch (error) {
        ended(resync, asError(error));
        throw error;
      }
      ended(resync, null);
    });
    try {
      await settleAll(runs);
    } finally {
      this.#digests?.close();
    }
  }

  /** Makes run() reject soon. */
  stop(): void {
    for (const resync of this.resyncs) resync.stop();
    this.#digests?.close();
  }
}

/**
 * What of a copy the replica has already, found out by digests, so that it is not sent (DRBD: csums-alg). After a crash of the
 * primary most of what may be missed is not; of a disk that was carried to the other host only what was written since is.
 *
 * Invariants:
 * - Once something can't be asked, nothing is any more: the copy goes on without.
 * - It costs little where the replica has nothing of it: after the first pieces they are compared one at a time then, and each that
 *   was in vain lets more pass than the one before.
 */
import type { Logger } from "pino";
import { DIRTY_BLOCK_BYTES } from "../../block/dirty-blocks.js";
import { describeError, LinkError } from "../../errors.js";
import { digestsOf } from "../digest.js";
import type { ReplicaDigests } from "./replica-digests.js";

/** Compared at once; a guest's write to it waits that long. A multiple of the dirty block. */
export const COMPARED_BYTES = 4 * DIRTY_BLOCK_BYTES;
/** What passes after the first piece in vain, and at most. */
const FIRST_PASS_BYTES = 4 * COMPARED_BYTES;
const LONGEST_PASS_BYTES = 256 * COMPARED_BYTES;

/** As ReplicaDigests.of(), of one disk. */
export type AskDigests = (
  offset: number,
  lengthBytes: number,
  blockBytes: number,
) => Promise<readonly string[]>;

/** Of one disk, for one copy. */
export class KnownContent {
  readonly #ask: AskDigests;
  readonly #onGivenUp: (error: unknown) => void;
  #isGivenUp = false;
  /** Nothing has been compared yet, or the replica had something of the last piece: many are compared at a time. */
  #isOfUse = true;
  /** One is compared to find out. */
  #isProbing = false;
  #passBytes = 0;
  #nextPassBytes = FIRST_PASS_BYTES;

  /** @param onGivenUp told once why nothing is asked any more */
  constructor(ask: AskDigests, onGivenUp: (error: unknown) => void) {
    this.#ask = ask;
    this.#onGivenUp = onGivenUp;
  }

  /**
   * What is asked of a secondary about one of its disks.
   * @param onSilent told when an answer stays out, before guests who wait for it go on
   */
  static of(
    disk: string,
    digests: Pick<ReplicaDigests, "of">,
    log: Logger,
    onSilent: () => void,
  ): KnownContent {
    return new KnownContent(
      (offset, lengthBytes, blockBytes) => digests.of(disk, offset, lengthBytes, blockBytes),
      (error) => {
        log.debug({ disk, error: describeError(error) }, "the replica tells no digests, all is sent");
        if (error instanceof LinkError && error.code === "timeout") onSilent();
      },
    );
  }

  /** Whether the next piece is to be compared, by compare(). If not, one of `lengthBytes` goes without. */
  isDue(lengthBytes: number): boolean {
    if (this.#isGivenUp || this.#isProbing) return false;
    if (this.#passBytes > 0) {
      this.#passBytes -= lengthBytes;
      return false;
    }
    this.#isProbing = !this.#isOfUse;
    return true;
  }

  /**
   * For each dirty block of a range that nobody writes to on either side whether the replica has the same.
   * @param content resolves with what this side has
   */
  async compare(offset: number, lengthBytes: number, content: Promise<Buffer>): Promise<readonly boolean[]> {
    const isProbe = !this.#isOfUse;
    const asked = this.#digestsOf(offset, lengthBytes);
    const [own, theirs] = await Promise.all([content, asked]);
    const isSame = digestsOf(own, DIRTY_BLOCK_BYTES).map((digest, block) => digest === theirs[block]);
    if (isProbe) this.#isProbing = false;
    this.#learn(isSame.includes(true), isProbe);
    return isSame;
  }

  #learn(isOfUse: boolean, isProbe: boolean): void {
    // Of many that were compared at a time the others tell nothing new.
    if (!isOfUse && !isProbe && !this.#isOfUse) return;
    if (isOfUse) this.#nextPassBytes = FIRST_PASS_BYTES;
    this.#isOfUse = isOfUse;
    this.#passBytes = isOfUse ? 0 : this.#nextPassBytes;
    if (!isOfUse) this.#nextPassBytes = Math.min(2 * this.#nextPassBytes, LONGEST_PASS_BYTES);
  }

  /** None, once something could not be asked. */
  async #digestsOf(offset: number, lengthBytes: number): Promise<readonly string[]> {
    if (this.#isGivenUp) return [];
    try {
      return await this.#ask(offset, lengthBytes, DIRTY_BLOCK_BYTES);
    } catch (error) {
      this.#giveUp(error);
      return [];
    }
  }

  #giveUp(error: unknown): void {
    if (this.#isGivenUp) return;
    this.#isGivenUp = true;
    this.#onGivenUp(error);
  }
}

/**
 * The names by which a secondary knows how far to trust a primary's dirty map (docs/adr/0001).
 *
 * Invariant: a map is trusted only if it shows the name given at the last handshake, or the one before as long as nothing was
 * written under the newer one, whose announcement may have been lost. So neither side's state, restored
 * from a backup, passes for the present one.
 */
import { randomUUID } from "node:crypto";
import type { SecondaryMetadata } from "../meta/metadata.js";
import type { MetadataKeeper } from "./metadata-keeper.js";

export class Tenures {
  readonly #metadata: MetadataKeeper<SecondaryMetadata>;
  readonly #onError: (error: unknown) => void;

  /** @param onError a change that nobody waits for could not be written */
  constructor(metadata: MetadataKeeper<SecondaryMetadata>, onError: (error: unknown) => void) {
    this.#metadata = metadata;
    this.#onError = onError;
  }

  /**
   * A primary shows the name that its dirty maps have.
   * @returns whether they tell all that this replica lacks, and the name from now on, which is on record
   */
  async renew(shown: string | null): Promise<{ readonly isKnown: boolean; readonly tenure: string }> {
    const { tenure, offeredTenure } = this.#metadata.current;
    const isKnown = shown !== null && (shown === tenure || shown === offeredTenure);
    const offered = randomUUID();
    await this.#metadata.save({ tenure: isKnown ? shown : null, offeredTenure: offered });
    return { isKnown, tenure: offered };
  }

  /** The primary writes: it has the new name. */
  confirm(): void {
    const { tenure, offeredTenure } = this.#metadata.current;
    if (offeredTenure !== null && tenure !== offeredTenure) this.#saveSoon({ tenure: offeredTenure });
  }

  /** Somebody wrote who has no dirty map: no map tells what this replica lacks. */
  forget(): void {
    const { tenure, offeredTenure } = this.#metadata.current;
    if (tenure !== null || offeredTenure !== null) this.#saveSoon({ tenure: null, offeredTenure: null });
  }

  #saveSoon(change: Partial<SecondaryMetadata>): void {
    this.#metadata.saveSoon(change, this.#onError);
  }
}

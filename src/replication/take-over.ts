/** The end of a switch-over: the secondary is asked to take over, until it is known whether it did. */
import { setTimeout as sleep } from "node:timers/promises";
import { asError, LinkError, UnreachableError } from "../errors.js";
import type { Address } from "../net/address.js";
import { connectControl } from "./connect-control.js";

/** How long to ask for. Guests wait. */
const DEADLINE_MS = 30_000;
const RETRY_MS = 250;

export interface TakeOver {
  /** The secondary's QMP server. */
  readonly control: Address;
  /** The uuid of the node that hands over. */
  readonly primary: string;
  /** The checkpoint at which both sides are the same. */
  readonly epoch: number;
  readonly timeoutMs: number;
}

/**
 * @returns the generation of the secondary, which has taken over
 * @throws LinkError "undecided" if nobody knows whether it did; any other error if it has not and will not
 */
export async function requestTakeOver({ control, primary, epoch, timeoutMs }: TakeOver): Promise<string> {
  const deadlineMs = performance.now() + DEADLINE_MS;
  let wasAsked = false;
  for (;;) {
    try {
      const connection = await connectControl(control, timeoutMs, () => undefined);
      try {
        wasAsked = true;
        return await connection.takeOver(primary, epoch);
      } finally {
        await connection.close();
      }
    } catch (error) {
      const isLost = error instanceof LinkError || error instanceof UnreachableError;
      if (!isLost) throw error;
      if (performance.now() > deadlineMs) {
        if (!wasAsked) throw error;
        throw new LinkError("undecided", `whether it took over is unknown: ${asError(error).message}`, {
          cause: error,
        });
      }
      await sleep(RETRY_MS);
    }
  }
}

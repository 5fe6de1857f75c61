/** The end of a switch-over: the secondary is asked to take over, until it is known whether it did. */
import { afterRunning, type Clock, pause } from "../../clock.js";
import { asError, LinkError, UnreachableError } from "../../errors.js";
import { QmpError, STOPPING } from "../../qmp/errors.js";
import type { Endpoint } from "../../net/endpoint.js";
import { TAKE_OVER_FAILED } from "../protocol.js";
import type { ReplicaControlEvents } from "./replica-control.js";
import type { ReplicaNetwork } from "./replica-network.js";

/** For how long the secondary is asked; guests wait. */
const DEADLINE_MS = 30_000;
const RETRY_MS = 250;

export interface TakeOver {
  /** The secondary's QMP server. */
  readonly control: Endpoint;
  /** The uuid of the node that hands over. */
  readonly primary: string;
  /** The checkpoint at which both sides are the same. */
  readonly epoch: number;
  readonly timeoutMs: number;
  readonly clock: Clock;
  readonly network: ReplicaNetwork;
}

/** Nothing that the replica tells beside its answer matters here. */
const DEAF: ReplicaControlEvents = {
  durable: () => undefined,
  checkpointFailed: () => undefined,
  rollbackLost: () => undefined,
};

/**
 * @returns the generation of the secondary, which has taken over
 * @throws LinkError "undecided" if nobody knows whether it did; any other error if it has not and will not
 */
export async function requestTakeOver(takeOver: TakeOver): Promise<string> {
  let isLate = false;
  const cancel = afterRunning(takeOver.clock, DEADLINE_MS, () => {
    isLate = true;
  });
  try {
    return await ask(takeOver, () => isLate);
  } finally {
    cancel();
  }
}

/** As requestTakeOver(), until it is late. */
async function ask(takeOver: TakeOver, isLate: () => boolean): Promise<string> {
  const { control, primary, epoch, timeoutMs, clock, network } = takeOver;
  let wasAsked = false;
  for (;;) {
    try {
      const connection = await network.control(control, timeoutMs, DEAF);
      try {
        return await connection.takeOver(primary, epoch);
      } catch (error) {
        wasAsked ||= !(error instanceof LinkError && error.code === STOPPING);
        throw error;
      } finally {
        await connection.close();
      }
    } catch (error) {
      const isLost = error instanceof LinkError || error instanceof UnreachableError;
      // It may be finished after a restart.
      const hasFailed = error instanceof QmpError && error.code === TAKE_OVER_FAILED;
      if (!isLost && !hasFailed) throw error;
      if (isLate()) {
        if (!wasAsked) throw error;
        throw new LinkError("undecided", `whether it took over is unknown: ${asError(error).message}`, {
          cause: error,
        });
      }
      await pause(clock, RETRY_MS);
    }
  }
}

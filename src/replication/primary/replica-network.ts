/** How a primary reaches its replica: a seam, so that the simulation can put another network under it. */
import type { BlockDevice } from "../../block/device.js";
import type { Endpoint } from "../../net/endpoint.js";
import { connectNbd } from "../../nbd/client/connect.js";
import { QmpClient } from "../../qmp/client.js";
import { connectControl } from "./connect-control.js";
import type { QmpConnection, ReplicaControl, ReplicaControlEvents } from "./replica-control.js";

/** A connection to one disk of the replica. */
export interface ReplicaDisk extends BlockDevice {
  /** Resolves (never rejects) with the reason when the connection has ended, null after close(). */
  readonly ended: Promise<Error | null>;
  /** Requests that are sent and unanswered. */
  readonly inFlight: number;
  /** The oldest of them, always the same object while it is that, and when it was sent, by the node's clock; null: none. */
  readonly oldestPending: { readonly sentAtMs: number } | null;
  /** Drops the connection at once; what is pending rejects with LinkError. */
  destroy(reason: Error): void;
}

/** For commands beside those of the control, whose answers must not wait for one another. */
export type CommandConnection = Pick<QmpConnection, "execute" | "close">;

export interface ReplicaNetwork {
  /** As connectControl(). */
  control(address: Endpoint, timeoutMs: number, events: ReplicaControlEvents): Promise<ReplicaControl>;
  /**
   * A further connection to the QMP server of a secondary of ours.
   * @param signal ends the attempt: a node that stops would wait for it
   * @throws UnreachableError
   */
  commands(address: Endpoint, timeoutMs: number, signal: AbortSignal): Promise<CommandConnection>;
  /** @throws UnreachableError, LinkError, NegotiationError or ProtocolError */
  disk(address: Endpoint, exportName: string, timeoutMs: number): Promise<ReplicaDisk>;
}

/** NBD and QMP over sockets. */
export const socketNetwork: ReplicaNetwork = {
  control: connectControl,
  commands: (address, timeoutMs, signal) => QmpClient.connect(address, { timeoutMs, signal }),
  // Compact headers: the shorter replies, and pieces of a long trim that each take less than the replica timeout.
  disk: (address, exportName, connectTimeoutMs) =>
    connectNbd({
      address,
      exportName,
      connectTimeoutMs,
      extendedHeaders: false,
      tls: address.tls !== undefined,
      tlsParameters: address.tls ?? {},
    }),
};

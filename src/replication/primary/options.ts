/** What a primary is made with. */
import type { Logger } from "pino";
import type { Clock } from "../../clock.js";
import type { StateDirectory } from "../../meta/state-directory.js";
import type { AckMode, CongestionPolicy, ReplicaErrorPolicy } from "../../status.js";
import type { LinkEvents } from "./link.js";
import type { ReplicaNetwork } from "./replica-network.js";
import type { NamedDisk } from "../named-disk.js";
import type { VerifierOptions } from "./verifier.js";

export interface PrimaryOptions {
  readonly directory: StateDirectory;
  readonly disks: readonly NamedDisk[];
  readonly ackMode: AckMode;
  /** Ack mode async: whether the guest waits for a replica that is slower, or goes on without it for a while. */
  readonly onCongestion: CongestionPolicy;
  /** Ack mode async: for changes that the replica has not acknowledged; who needs more waits. Default: 64 MiB. */
  readonly asyncBytes?: number;
  /** Whether guests go on without a replica that can't take changes, or their changes wait until it can. */
  readonly onReplicaError: ReplicaErrorPolicy;
  readonly replicaTimeoutMs: number;
  /** 0: no limit. */
  readonly resyncBytesPerSecond: number;
  /** 0: on demand only. */
  readonly checkpointIntervalMs: number;
  /** Default: the system's. */
  readonly clock?: Clock;
  /** Default: NBD and QMP over sockets. */
  readonly network?: ReplicaNetwork;
  readonly log: Logger;
  readonly events: Pick<LinkEvents, "stateChanged" | "jobEnded"> & Pick<VerifierOptions, "verifyEnded">;
}

/**
 * What a node says about itself over QMP (`x-repl-status`, `x-repl-failover`): plain data, the contract between the
 * node and everything that shows or watches it. Sizes are bytes, instants ISO 8601 in UTC.
 */

export type NodeRole = "primary" | "secondary";

/** QEMU's replication stages (include/block/replication.h). */
export const NODE_STAGES = ["none", "running", "failover", "failover-failed", "done"] as const;
export type NodeStage = (typeof NODE_STAGES)[number];

/** As QEMU names them: `unsafe` never waits for stable storage. */
export const CACHE_MODES = ["writeback", "unsafe"] as const;
export type CacheMode = (typeof CACHE_MODES)[number];

/** What to do when the replica is slower than the guest; QEMU has none, DRBD: on-congestion. */
export const CONGESTION_POLICIES = ["block", "detach"] as const;
export type CongestionPolicy = (typeof CONGESTION_POLICIES)[number];

/** What guests' changes do while the replica can't take them; QEMU: werror, DRBD: fencing. */
export const REPLICA_ERROR_POLICIES = ["continue", "stop"] as const;
export type ReplicaErrorPolicy = (typeof REPLICA_ERROR_POLICIES)[number];

/** What an acknowledgement to the guest stands for; DRBD's protocols A, B and C. */
export const ACK_MODES = ["async", "memsync", "sync"] as const;
export type AckMode = (typeof ACK_MODES)[number];

export const LINK_STATES = [
  "detached",
  "connecting",
  "handshaking",
  "resyncing",
  "replicating",
  "disconnected",
  "refused",
] as const;
export type LinkState = (typeof LINK_STATES)[number];

/** Whether a failover can go back to the last checkpoint; none: there is no checkpoint, or no more need of one. */
export const ROLLBACK_STATES = ["available", "lost", "none"] as const;
export type RollbackState = (typeof ROLLBACK_STATES)[number];

export interface NodeStatus {
  readonly role: NodeRole;
  readonly version: string;
  readonly stage: NodeStage;
  readonly epoch: number;
  /** Of the data's line of history; null: of none yet. */
  readonly generation: string | null;
  /** The first swallowed error since the last time all was well; null if there was none. */
  readonly error: SwallowedError | null;
  /** Why a checkpoint would be refused now; null if it would not. */
  readonly checkpointRefusal: string | null;
  /** Which promise the node can't keep any more, so that it would end with exit code 1; null: it keeps them all. */
  readonly brokenPromise: string | null;
  readonly lastCheckpoint: { readonly epoch: number; readonly at: string } | null;
  readonly uptimeSeconds: number;
  readonly stateDirectory: string;
  readonly cache: CacheMode;
  readonly disks: readonly DiskStatus[];
  readonly listeners: readonly ListenerStatus[];
  /** Of NBD. */
  readonly clients: readonly ClientStatus[];
  readonly jobs: readonly JobStatus[];
  readonly primary?: PrimaryStatus;
  readonly secondary?: SecondaryStatus;
}

/** The first of several I/O errors, and how many there were. */
export interface RecordedError {
  /** "write", "flush", "copy-before-write", ... */
  readonly operation: string;
  readonly errno: string;
  /** Its name; of all of them, with commas between, where it can't be told. */
  readonly disk: string;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** How many there were since, this one included. */
  readonly count: number;
  readonly firstAt: string;
  readonly message: string;
}

/** An I/O error that no client was told of: of a replica, or of a secondary behind its acknowledgement. */
export type SwallowedError = RecordedError;

export interface ListenerStatus {
  readonly purpose: "guest" | "replication" | "view" | "qmp";
  /** As parseAddress() reads it. */
  readonly address: string;
  readonly clients: number;
}

/** A connection of an NBD client. */
export interface ClientStatus {
  readonly purpose: "guest" | "replication" | "view";
  /** Its address, or the path of the listener and a number. */
  readonly peer: string;
  /** Null: it has not chosen one yet. */
  readonly export: string | null;
  /** Null: none. `user`: the name in its certificate or of its pre-shared key; null if it had to show neither. */
  readonly tls: { readonly version: string | null; readonly user: string | null } | null;
  readonly requestsInFlight: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
}

export interface DiskStatus {
  readonly name: string;
  readonly path: string;
  readonly sizeBytes: number;
  readonly primary?: {
    /** Blocks that the replica lacks. */
    readonly dirtyBytes: number;
    readonly writesReplicated: number;
    readonly bytesReplicated: number;
    /** Content that resyncs have sent since the start, or found on the replica. */
    readonly bytesResynced: number;
    /** What of that was found there, by digests, and not sent. */
    readonly bytesFound: number;
    /** Requests sent to the replica and not answered. */
    readonly inFlight: number;
    /** Of the disk itself since the start: whoever asked, a guest or a copy to the replica, was told of it. Null: none. */
    readonly error: RecordedError | null;
    /** What the last verify found since the node started, or since all was copied anew; null: there was none. */
    readonly lastVerify: VerifyReport | null;
  };
  readonly secondary?: {
    /** Before-images in the hidden overlay. */
    readonly undoBytes: number;
    /** The secondary guest's writes in the active overlay. */
    readonly activeBytes: number;
    /** Received, acknowledged and not yet durable. */
    readonly pendingBytes: number;
  };
}

/** What an online verify found. */
export interface VerifyReport {
  readonly startedAt: string;
  readonly endedAt: string;
  readonly outcome: "completed" | "cancelled" | "failed";
  /** Why it failed; null if it did not. */
  readonly error: string | null;
  readonly comparedBytes: number;
  /** Known not to be replicated, and not compared. */
  readonly skippedBytes: number;
  /** In blocks of 4 KiB. */
  readonly differingBytes: number;
  /** Of those, sent to the replica again. */
  readonly repairedBytes: number;
  /** The first of what differs, in order. */
  readonly differences: readonly DifferingExtent[];
  /** Whether `differences` names all. */
  readonly differencesAreAll: boolean;
}

export interface DifferingExtent {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** A running block job, in QEMU's terms (BlockJobInfo). */
export interface JobStatus {
  readonly id: string;
  readonly type: "mirror" | "commit" | "verify";
  readonly disk: string;
  /** Bytes done of `len`. */
  readonly offset: number;
  readonly len: number;
  /** Since it began: `offset` over this is its rate so far. */
  readonly elapsedSeconds: number;
  /** Limit in bytes per second; 0: none. */
  readonly speed: number;
  readonly ready: boolean;
}

export interface PrimaryStatus {
  readonly ackMode: AckMode;
  readonly onReplicaError: ReplicaErrorPolicy;
  /** Changes of guests that wait for the replica; 0 if they never do. */
  readonly waitingChanges: number;
  /** How a disk is another file than the one on record, while no replica has taken its content; null: none is. */
  readonly newData: string | null;
  readonly checkpointIntervalMs: number;
  readonly replicaTimeoutMs: number;
  /** Null: the last checkpoint that was tried was taken, or none was tried since the replica was attached. */
  readonly checkpointFailure: CheckpointFailure | null;
  readonly link: {
    readonly state: LinkState;
    /** NBD URI; null: none is, or was to be, attached. */
    readonly replica: string | null;
    /** When the link came into this state. */
    readonly since: string;
    /** Why it was lost last, or why the last replica was not attached; null: neither, or that is mended. */
    readonly lastError: string | null;
    readonly reconnects: number;
    /** Why the replica can't go back to its last checkpoint, as it said last; null: it can, or does not say (a QEMU). */
    readonly rollbackLost: string | null;
  };
}

/** Checkpoints that were refused or failed, one after the other. */
export interface CheckpointFailure {
  /** Of the last one. */
  readonly reason: string;
  /** When the first one was tried in vain. */
  readonly since: string;
  /** How many there were. */
  readonly attempts: number;
}

export interface SecondaryStatus {
  readonly rollback: RollbackState;
  /** Also where `rollback` is none and the disks are half of something. */
  readonly rollbackLostReason: string | null;
  readonly undoBytes: number;
  /** Why the last primary was refused for its data's history: split brain, for example; null if it was not. */
  readonly conflict: string | null;
  /** The file with what this node gave up last for a primary with another history; there when its resync is done. */
  readonly salvage: string | null;
  /** Whether a primary is connected, and which. */
  readonly writer: string | null;
}

export const FAILOVER_TARGETS = ["checkpoint", "latest"] as const;
export type FailoverTarget = (typeof FAILOVER_TARGETS)[number];

/** What going to one target means for the data. */
export interface FailoverOutcome {
  readonly to: FailoverTarget;
  readonly possible: boolean;
  /** Why not; null if possible. */
  readonly reason: string | null;
  /** What to know before choosing it; null if there is nothing. */
  readonly warning: string | null;
  readonly lost: {
    /**
     * checkpoint: what the primary overwrote since the last checkpoint; latest: what the secondary's guest
     * wrote through the view since then.
     */
    readonly bytes: number;
    /** checkpoint: the age of the last checkpoint; latest: 0 if no view write is lost, else the same. */
    readonly seconds: number;
  };
}

/** Answer of `x-repl-failover`: with `dry-run` what would be, otherwise what was begun. */
export interface FailoverPlan extends FailoverOutcome {
  readonly dryRun: boolean;
  /** The epoch that the failover ends. */
  readonly epoch: number;
  readonly lastCheckpoint: { readonly epoch: number; readonly at: string } | null;
  /** The other target. */
  readonly alternatives: readonly FailoverOutcome[];
}

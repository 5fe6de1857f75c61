/** What nodes say about themselves, for the tests of what shows it. */
import type { FailoverPlan, NodeStatus } from "../../../src/status.js";

const common = {
  version: "1.2.3",
  stage: "running",
  epoch: 12,
  generation: "5f3c",
  error: null,
  checkpointRefusal: null,
  brokenPromise: null,
  lastCheckpoint: { epoch: 11, at: "2026-01-02T03:04:05.000Z" },
  uptimeSeconds: 18_720,
  stateDirectory: "/state",
  cache: "writeback",
} as const;

/** Three seconds after the last checkpoint. */
export const NOW_MS = Date.parse("2026-01-02T03:04:08.000Z");

export const primaryStatus: NodeStatus = {
  ...common,
  role: "primary",
  disks: [
    {
      name: "disk0",
      path: "/srv/disk0.img",
      sizeBytes: 1024 ** 3,
      primary: {
        dirtyBytes: 0,
        writesReplicated: 4000,
        bytesReplicated: 12 * 1024 ** 2,
        bytesResynced: 5_000_000,
        bytesFound: 3_000_000,
        lastVerify: null,
        error: null,
        inFlight: 3,
      },
    },
  ],
  listeners: [{ purpose: "guest", address: "unix:/run/p.sock", clients: 1 }],
  clients: [
    {
      purpose: "guest",
      peer: "unix:/run/p.sock#1",
      export: "disk0",
      tls: null,
      requestsInFlight: 3,
      bytesRead: 0,
      bytesWritten: 4096,
    },
  ],
  jobs: [
    {
      id: "sync0",
      type: "mirror",
      disk: "disk0",
      offset: 512 * 1024 ** 2,
      len: 1024 ** 3,
      elapsedSeconds: 4,
      speed: 100 * 1024 ** 2,
      ready: false,
    },
  ],
  primary: {
    ackMode: "memsync",
    onReplicaError: "continue",
    waitingChanges: 0,
    newData: null,
    checkpointIntervalMs: 5000,
    replicaTimeoutMs: 5000,
    checkpointFailure: null,
    link: {
      state: "replicating",
      replica: "nbd://secondary:10809",
      since: "2026-01-02T03:00:48.000Z",
      lastError: null,
      reconnects: 0,
      rollbackLost: null,
    },
  },
};

export const secondaryStatus: NodeStatus = {
  ...common,
  role: "secondary",
  disks: [
    {
      name: "disk0",
      path: "/srv/disk0.img",
      sizeBytes: 1024 ** 3,
      secondary: { undoBytes: 1536, activeBytes: 0, pendingBytes: 512 },
    },
  ],
  listeners: [],
  clients: [],
  jobs: [],
  secondary: {
    rollback: "available",
    rollbackLostReason: null,
    undoBytes: 1536,
    conflict: null,
    salvage: null,
    writer: "10.0.0.1:40000",
  },
};

export const plan: FailoverPlan = {
  to: "checkpoint",
  dryRun: true,
  epoch: 12,
  possible: true,
  reason: null,
  warning: null,
  lost: { bytes: 12 * 1024 ** 2, seconds: 3.2 },
  lastCheckpoint: { epoch: 11, at: "2026-01-02T03:04:05.000Z" },
  alternatives: [
    { to: "latest", possible: true, reason: null, warning: null, lost: { bytes: 0, seconds: 0 } },
  ],
};

/** One that a node records. */
export const ERROR = {
  operation: "write",
  errno: "EIO",
  disk: "disk0",
  offsetBytes: 4096,
  lengthBytes: 512,
  count: 3,
  firstAt: "2026-01-02T03:03:08.000Z",
  message: "Input/output error",
};

export const primaryPart = (change: Partial<NonNullable<NodeStatus["primary"]>>): NodeStatus => {
  const { primary } = primaryStatus;
  if (primary === undefined) throw new Error("the status is not a primary's");
  return { ...primaryStatus, primary: { ...primary, ...change } };
};

export const linkPart = (change: Partial<NonNullable<NodeStatus["primary"]>["link"]>): NodeStatus => {
  const link = primaryStatus.primary?.link;
  if (link === undefined) throw new Error("the status is not a primary's");
  return primaryPart({ link: { ...link, ...change } });
};

/** The configuration of a node: what the options mean together, their defaults, and what they exclude. */
import { join } from "node:path";
import { z } from "zod";
import { ConfigError } from "../errors.js";
import { LOG_FORMATS, LOG_LEVELS } from "../log.js";
import type { LogFormat, LogLevel } from "../log.js";
import { formatAddress, parseAddress, unixAddress } from "../net/address.js";
import type { Address } from "../net/address.js";
import type { SocketAccess } from "../net/listen.js";
import type { InheritedSocket } from "../os/socket-activation.js";
import {
  ACK_MODES,
  type AckMode,
  CACHE_MODES,
  type CacheMode,
  CONGESTION_POLICIES,
  type CongestionPolicy,
  REPLICA_ERROR_POLICIES,
  type ReplicaErrorPolicy,
} from "../status.js";
import {
  addressField,
  badOption,
  choiceField,
  countField,
  directoryField,
  diskField,
  durationField,
  growthField,
  networkField,
  ownerField,
  rateField,
  replicaField,
  sizeField,
  socketModeField,
} from "./fields.js";
import type { DiskConfig, GrowthConfig } from "./fields.js";

import { type TlsConfig, tlsConfig, tlsFields } from "./tls.js";

const UNDO_ERROR_POLICIES = ["break-checkpoint", "break-replication"] as const;
/** What to do when a before-image can't be kept: lose the rollback until the next checkpoint, or refuse the write. */
export type UndoErrorPolicy = (typeof UNDO_ERROR_POLICIES)[number];

/** Who may connect to the NBD servers, and how often. */
export interface AccessConfig {
  /** Networks, checked; empty: everybody. Holds for QMP over TCP too. */
  readonly allow: readonly string[];
  /** null: the server's default. */
  readonly maxConnections: number | null;
  readonly maxConnectionsPerPeer: number | null;
  /** Of unix sockets. */
  readonly sockets: SocketAccess;
}

/** What both nodes are told. */
export interface NodeConfig {
  /** At least one; names and paths are unique. */
  readonly disks: readonly DiskConfig[];
  /** Size of the disk files to create; null: they must exist. */
  readonly createSizeBytes: number | null;
  /** Disks that are to be larger than they are on record; each is one of `disks`. */
  readonly growth: readonly GrowthConfig[];
  /** Besides defaultQmpAddress(stateDir), which is always served. */
  readonly qmp: readonly Address[];
  /** From systemd, for guests or the primary; they stand in for the default of `listen`. */
  readonly sockets: readonly InheritedSocket[];
  readonly stateDir: string;
  readonly cache: CacheMode;
  readonly tls: TlsConfig;
  readonly access: AccessConfig;
  readonly logLevel: LogLevel;
  /** null: as createLogger() chooses. */
  readonly logFormat: LogFormat | null;
}

export interface PrimaryConfig extends NodeConfig {
  /** For guests. */
  readonly listen: readonly Address[];
  /** NBD URI, checked; null: no replica for now. */
  readonly replica: string | null;
  /** null: a manager drives the checkpoints. Never set without `replica`. */
  readonly replicaQmp: Address | null;
  /** 0: on demand only. */
  readonly checkpointIntervalMs: number;
  readonly ackMode: AckMode;
  readonly onCongestion: CongestionPolicy;
  readonly onReplicaError: ReplicaErrorPolicy;
  readonly replicaTimeoutMs: number;
  /** 0: without limit. */
  readonly resyncBytesPerSecond: number;
}

export interface SecondaryConfig extends NodeConfig {
  /** For the primary; empty for `--listen none`. */
  readonly listen: readonly Address[];
  readonly view: readonly Address[];
  readonly onUndoError: UndoErrorPolicy;
  /** For this start only. */
  readonly discardLocalChanges: boolean;
  /** For this start only. */
  readonly demote: boolean;
  /** Whether what can destroy data need not be asked for. */
  readonly isConfirmed: boolean;
}

/** QEMU has none and stalls guests; five seconds ride out a switch's reconvergence and a guest's SCSI layer alike. */
const DEFAULT_REPLICA_TIMEOUT_MS = 5000;

/** How a node replicates that was not told otherwise. */
export const DEFAULT_REPLICATION = {
  ackMode: "memsync",
  onCongestion: "block",
  onReplicaError: "continue",
  replicaTimeoutMs: DEFAULT_REPLICA_TIMEOUT_MS,
  resyncBytesPerSecond: 0,
  checkpointIntervalMs: 0,
} as const;

/** Below it, an ordinary pause of the other process would look like an outage. */
const MINIMUM_REPLICA_TIMEOUT_MS = 100;

const DEFAULT_LISTEN: readonly Address[] = [parseAddress("127.0.0.1:10809")];

const NO_LISTENER = "none";

const commonFields = {
  disk: z.array(diskField).optional(),
  size: sizeField.optional(),
  grow: z.array(growthField).default([]),
  listen: z.array(addressField).optional(),
  qmp: z.array(addressField).default([]),
  "state-dir": directoryField,
  allow: z.array(networkField).default([]),
  "max-connections": countField.optional(),
  "max-connections-per-peer": countField.optional(),
  "unix-mode": socketModeField.optional(),
  "unix-owner": ownerField.optional(),
  ...tlsFields,
  cache: choiceField(CACHE_MODES).default("writeback"),
  "log-level": choiceField(LOG_LEVELS).default("info"),
  "log-format": choiceField(LOG_FORMATS).optional(),
};

const primaryFields = z.strictObject({
  ...commonFields,
  replica: replicaField.optional(),
  "replica-qmp": addressField.optional(),
  "checkpoint-interval": durationField.default(DEFAULT_REPLICATION.checkpointIntervalMs),
  "ack-mode": choiceField(ACK_MODES).default(DEFAULT_REPLICATION.ackMode),
  "on-congestion": choiceField(CONGESTION_POLICIES).default(DEFAULT_REPLICATION.onCongestion),
  "on-replica-error": choiceField(REPLICA_ERROR_POLICIES).default(DEFAULT_REPLICATION.onReplicaError),
  "replica-timeout": durationField.default(DEFAULT_REPLICATION.replicaTimeoutMs),
  "resync-rate": rateField.default(DEFAULT_REPLICATION.resyncBytesPerSecond),
});

const secondaryFields = z.strictObject({
  ...commonFields,
  view: z.array(addressField).optional(),
  "discard-local-changes": z.string().optional(),
  demote: z.string().optional(),
  yes: z.string().optional(),
  "on-undo-error": choiceField(UNDO_ERROR_POLICIES).default("break-checkpoint"),
});

/** The values of the options, as text; a list for those that may be repeated. */
export type OptionValues = Readonly<Record<string, string | readonly string[]>>;

/** Where an option's value came from, for errors: "--size", "pair.yaml: size". */
export type NameOption = (option: string) => string;

/** @throws ConfigError that names the option, its value and what would be right */
export function primaryConfig(
  values: OptionValues,
  nameOption: NameOption,
  sockets: readonly InheritedSocket[] = [],
): PrimaryConfig {
  const fields = check(primaryFields, values, nameOption);
  const listen = fields.listen ?? (sockets.length > 0 ? [] : DEFAULT_LISTEN);
  const replica = fields.replica ?? null;
  const replicaQmp = fields["replica-qmp"] ?? null;
  const checkpointIntervalMs = fields["checkpoint-interval"];
  if (replicaQmp !== null && replica === null) throw badOption(nameOption("replica-qmp"), "needs --replica");
  if (checkpointIntervalMs > 0 && replica !== null && replicaQmp === null) {
    throw badOption(
      nameOption("checkpoint-interval"),
      "needs --replica-qmp: without it a manager drives the checkpoints",
    );
  }
  if (fields["replica-timeout"] < MINIMUM_REPLICA_TIMEOUT_MS) {
    throw badOption(nameOption("replica-timeout"), `must be at least ${MINIMUM_REPLICA_TIMEOUT_MS}ms`);
  }
  if (fields["on-congestion"] === "detach" && fields["ack-mode"] !== "async") {
    throw badOption(
      nameOption("on-congestion"),
      "detach needs --ack-mode async: in the others a guest waits for the replica anyway",
    );
  }
  if (fields["on-replica-error"] === "stop" && fields["on-congestion"] === "detach") {
    throw badOption(
      nameOption("on-replica-error"),
      "stop can't be combined with --on-congestion detach, which lets the guest go on alone",
    );
  }
  const common = commonConfig(fields, listen, nameOption);
  return {
    ...common,
    listen,
    sockets,
    replica,
    replicaQmp,
    checkpointIntervalMs,
    ackMode: fields["ack-mode"],
    onCongestion: fields["on-congestion"],
    onReplicaError: fields["on-replica-error"],
    replicaTimeoutMs: fields["replica-timeout"],
    resyncBytesPerSecond: fields["resync-rate"],
  };
}

/** @throws ConfigError that names the option, its value and what would be right */
export function secondaryConfig(
  values: OptionValues,
  nameOption: NameOption,
  sockets: readonly InheritedSocket[] = [],
): SecondaryConfig {
  const { listen: listenValues, ...others } = values;
  const none = [listenValues].flat().includes(NO_LISTENER);
  if (none && [listenValues].flat().length > 1) {
    throw badOption(nameOption("listen"), `"${NO_LISTENER}" can't be combined with an address`);
  }
  const fields = check(secondaryFields, none ? others : values, nameOption);
  if (none && sockets.length > 0) {
    throw badOption(nameOption("listen"), `"${NO_LISTENER}" can't be combined with sockets from systemd`);
  }
  const listen = none ? [] : (fields.listen ?? (sockets.length > 0 ? [] : DEFAULT_LISTEN));
  const view = fields.view ?? [unixAddress(join(fields["state-dir"], "view.sock"))];
  const common = commonConfig(fields, [...listen, ...view], nameOption);
  return {
    ...common,
    listen,
    sockets,
    view,
    onUndoError: fields["on-undo-error"],
    discardLocalChanges: fields["discard-local-changes"] !== undefined,
    demote: fields.demote !== undefined,
    isConfirmed: fields.yes !== undefined,
  };
}

/** The QMP socket that every node serves. @throws ConfigError if the path is too long for a socket */
export function defaultQmpAddress(stateDir: string): Address {
  return unixAddress(join(stateDir, "qmp.sock"));
}

function commonConfig(
  fields: Pick<z.output<typeof primaryFields>, keyof typeof commonFields>,
  otherAddresses: readonly Address[],
  nameOption: NameOption,
): Omit<NodeConfig, "sockets"> {
  const disks = fields.disk ?? [];
  if (disks.length === 0) throw new ConfigError("missing-disk", "no disk given: use --disk NAME=PATH");
  refuseRepeated(
    disks.map((disk) => disk.name),
    `${nameOption("disk")}: two disks are named`,
  );
  refuseRepeated(
    disks.map((disk) => disk.path),
    `${nameOption("disk")}: two disks are kept in`,
  );
  refuseRepeated(
    fields.grow.map(({ name }) => name),
    `${nameOption("grow")}: two sizes are given for`,
  );
  const stranger = fields.grow.find((growth) => !disks.some(({ name }) => name === growth.name));
  if (stranger !== undefined) throw badOption(nameOption("grow"), `no --disk is named "${stranger.name}"`);
  const addresses = [...otherAddresses, ...fields.qmp, defaultQmpAddress(fields["state-dir"])];
  refuseRepeated(
    addresses.filter((address) => address.kind === "unix" || address.port !== 0).map(formatAddress),
    "two listeners have the address",
  );
  return {
    disks,
    createSizeBytes: fields.size ?? null,
    growth: fields.grow,
    qmp: fields.qmp,
    stateDir: fields["state-dir"],
    cache: fields.cache,
    tls: tlsConfig(fields, nameOption),
    access: {
      allow: fields.allow,
      maxConnections: fields["max-connections"] ?? null,
      maxConnectionsPerPeer: fields["max-connections-per-peer"] ?? null,
      sockets: {
        ...(fields["unix-mode"] !== undefined && { mode: fields["unix-mode"] }),
        ...fields["unix-owner"],
      },
    },
    logLevel: fields["log-level"],
    logFormat: fields["log-format"] ?? null,
  };
}

function check<S extends z.ZodType>(schema: S, values: OptionValues, nameOption: NameOption): z.output<S> {
  const result = schema.safeParse(values);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  throw badOption(nameOption(String(issue?.path[0])), issue?.message ?? "can't be used");
}

function refuseRepeated(values: readonly string[], complaint: string): void {
  const repeated = values.find((value, i) => values.indexOf(value) !== i);
  if (repeated !== undefined) throw new ConfigError("repeated", `${complaint} "${repeated}"`);
}

/** `metadata.json` of a node: what it must know after a restart. Written whole, atomically and durably, or not at all. */
import { randomUUID } from "node:crypto";
import { z } from "zod";
import { MetadataError } from "../errors.js";
import { FAILOVER_TARGETS, NODE_STAGES } from "../status.js";
import { otherVersion } from "./other-version.js";
import type { StateDirectory } from "./state-directory.js";

const METADATA_FILE = "metadata.json";
const FORMAT = "nbd-replication metadata";
const VERSION = 6;

const disk = z.strictObject({
  name: z.string(),
  sizeBytes: z.int().positive(),
  /** Of the disk's file, to notice another one in its place; null where there is none. */
  inode: z.string().nullable(),
  /** Of the disk's file when the node stopped, in nanoseconds; null while it runs. */
  modifiedNs: z.string().nullable(),
});

const common = {
  format: z.literal(FORMAT),
  version: z.literal(VERSION),
  uuid: z.uuid(),
  /** The line of history that the data is of; null: of none yet. */
  generation: z.uuid().nullable(),
  /** The lines that it came from, newest first. */
  ancestors: z.array(z.uuid()),
  /** As a primary: the generation that its replica may have. */
  replicaGeneration: z.uuid().nullable(),
  epoch: z.int().nonnegative(),
  disks: z.array(disk),
  cleanShutdown: z.boolean(),
};

const secondarySchema = z.strictObject({
  ...common,
  role: z.literal("secondary"),
  stage: z.enum(NODE_STAGES),
  failoverTarget: z.enum(FAILOVER_TARGETS).nullable(),
  /** When the last checkpoint was taken, ISO 8601. */
  checkpointAt: z.string().nullable(),
  /** Names the time since which only one primary wrote, the one that knows this name: its dirty map counts. */
  tenure: z.uuid().nullable(),
  /** The name told to that primary at its last handshake; it becomes `tenure` with the first write after that. */
  offeredTenure: z.uuid().nullable(),
  /** The uuid of the primary that introduced itself last: it gets in again, whoever else is writing. */
  primary: z.string().nullable(),
  /** The last epoch that this primary asked for, which it had put on record before. Absent in what older releases wrote. */
  primaryEpoch: z.int().nonnegative().default(0),
  /** Whether a primary has introduced itself and not said yet that nothing is missing: the disks may be a mixture. */
  copying: z.boolean(),
  /**
   * Outside an epoch: why what the disks hold is nothing to go back to. In one: why what it began on is not. null: that is a checkpoint,
   * or data of the node's own. Never null while `copying` outside an epoch.
   */
  mixed: z.string().nullable(),
  /** Whether what only this node has may be given up for a primary with another history. */
  discard: z.boolean(),
  /** Whether the node was a primary and has its dirty maps from then, which tell what it changed by itself. */
  returning: z.boolean(),
  /** Whether it handed its disks over to another node, which goes on with them. Absent in what older releases wrote. */
  handedOver: z.boolean().default(false),
  /** The epoch whose before-images hold what this node gave up; they are kept for people. */
  salvage: z.int().positive().nullable(),
  /** Why the disks may lack writes. */
  gap: z.string().nullable(),
  /** Which writer was cut off, after which this replica may be behind it, or null. */
  cutOff: z.string().nullable(),
  /** Where each log ended when the node stopped; none while it runs, for then a log may have a torn tail. */
  logs: z.array(z.strictObject({ name: z.string(), endBytes: z.int().positive() })),
});

const primarySchema = z.strictObject({ ...common, generation: z.uuid(), role: z.literal("primary") });

const nodeSchema = z.discriminatedUnion("role", [secondarySchema, primarySchema]);

export type SecondaryMetadata = Readonly<z.infer<typeof secondarySchema>>;
export type PrimaryMetadata = Readonly<z.infer<typeof primarySchema>>;
export type NodeMetadata = SecondaryMetadata | PrimaryMetadata;
export type LogEnd = SecondaryMetadata["logs"][number];
export type DiskIdentity = Readonly<z.infer<typeof disk>>;

/** What a secondary knows that has not replicated yet, whatever its data is. */
export const UNTOUCHED_SECONDARY: Omit<SecondaryMetadata, keyof typeof common> = {
  role: "secondary",
  stage: "none",
  failoverTarget: null,
  checkpointAt: null,
  tenure: null,
  offeredTenure: null,
  primary: null,
  primaryEpoch: 0,
  copying: false,
  mixed: null,
  discard: false,
  returning: false,
  handedOver: false,
  salvage: null,
  gap: null,
  cutOff: null,
  logs: [],
};

export function newSecondaryMetadata(disks: readonly DiskIdentity[]): SecondaryMetadata {
  return { ...newCommon(disks), ...UNTOUCHED_SECONDARY };
}

export function newPrimaryMetadata(disks: readonly DiskIdentity[]): PrimaryMetadata {
  return { ...newCommon(disks), generation: randomUUID(), role: "primary" };
}

function newCommon(
  disks: readonly DiskIdentity[],
): Omit<PrimaryMetadata, "role" | "generation"> & { readonly generation: null } {
  return {
    format: FORMAT,
    version: VERSION,
    uuid: randomUUID(),
    generation: null,
    ancestors: [],
    replicaGeneration: null,
    epoch: 0,
    disks: [...disks],
    cleanShutdown: true,
  };
}

export function writeMetadata(directory: StateDirectory, metadata: NodeMetadata): Promise<void> {
  return directory.replaceText(METADATA_FILE, `${JSON.stringify(metadata, null, 2)}\n`);
}

type SizedDisk = Pick<DiskIdentity, "name" | "sizeBytes">;

/** @throws MetadataError if the disks given on the command line are not those that the state belongs to */
export function checkDisks(
  directory: StateDirectory,
  known: readonly SizedDisk[],
  given: readonly SizedDisk[],
): void {
  const path = metadataPath(directory);
  for (const [index, { name, sizeBytes }] of known.entries()) {
    const other = given[index];
    if (other?.name !== name || given.length !== known.length) {
      const list = (disks: readonly SizedDisk[]): string => disks.map((entry) => entry.name).join(", ");
      throw new MetadataError(
        "other-disks",
        `${path} belongs to the disks ${list(known)}, in this order, not to ${list(given)}: give those, or another --state-dir`,
      );
    }
    if (other.sizeBytes !== sizeBytes) {
      throw new MetadataError(
        "other-size",
        `disk ${name} has ${other.sizeBytes} bytes, but ${path} knows it with ${sizeBytes}: ${other.sizeBytes > sizeBytes ? `give --grow ${name}=${other.sizeBytes} if it has been made larger, else the same disk` : "give the same disk"}, or another --state-dir`,
      );
    }
  }
}

/** @returns null if there is none yet @throws MetadataError if it is of another version, or damaged */
export async function readMetadata(directory: StateDirectory): Promise<NodeMetadata | null> {
  const path = metadataPath(directory);
  const text = await directory.readText(METADATA_FILE);
  if (text === null) return null;
  const remedy = "restore it, or remove the directory, which costs a full copy";
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new MetadataError("damaged", `${path} is not JSON: ${remedy}`, { cause: error });
  }
  const head = z.object({ format: z.string(), version: z.number() }).safeParse(json);
  if (!head.success || head.data.format !== FORMAT) {
    throw new MetadataError("foreign", `${path} is not a metadata file of nbd-replication: ${remedy}`);
  }
  if (head.data.version !== VERSION) throw otherVersion(path, head.data.version, VERSION);
  const parsed = nodeSchema.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new MetadataError(
      "damaged",
      `${path} is damaged: ${issue?.path.join(".") ?? ""}: ${issue?.message ?? ""}: ${remedy}`,
    );
  }
  return parsed.data;
}

/** For errors. */
export function metadataPath(directory: StateDirectory): string {
  return `${directory.path}/${METADATA_FILE}`;
}

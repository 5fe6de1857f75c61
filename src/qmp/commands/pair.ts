/** Commands of our own: what the two nodes of a pair say to each other, and what operators do with them. */
import { z } from "zod";
import { ConfigError, NegotiationError, StateError } from "../../errors.js";
import { addressField, durationField, replicaField } from "../../config/fields.js";
import type { Address } from "../../net/address.js";
import { answerDigests } from "../../replication/secondary/digests.js";
import { digestRequestSchema } from "../../replication/digest.js";
import type { Primary } from "../../replication/primary/primary.js";
import { HANDSHAKE_VERSION, helloSchema } from "../../replication/protocol.js";
import type { Secondary } from "../../replication/secondary/secondary.js";
import { FAILOVER_TARGETS, type FailoverOutcome, type FailoverPlan } from "../../status.js";
import { type QmpCommand, qmpCommand } from "../command.js";
import { isPromoted } from "../../replication/stage.js";
import { type LinkTls, refuseItself, replicaOf } from "../../replication/primary/replica-uri.js";

const failoverArguments = z.strictObject({
  to: z.enum(FAILOVER_TARGETS).optional(),
  "dry-run": z.boolean().optional(),
});

export function primaryPairCommands(primary: Primary, parts: ReplicaCommandsParts): QmpCommand[] {
  return [
    qmpCommand({
      name: "x-repl-checkpoint",
      arguments: z.strictObject({}),
      run: async () => ({ epoch: await primary.checkpoint() }),
    }),
    // Who asks for it has the wrong node, and is told so.
    qmpCommand({
      name: "x-repl-failover",
      arguments: failoverArguments,
      run: () =>
        Promise.reject(
          new StateError(
            "not-secondary",
            "this is a primary: there is nothing to fail over; ask its secondary, or hand over to that (switch-over)",
          ),
        ),
    }),
    ...replicaCommands(() => primary, parts),
  ];
}

export interface ReplicaCommandsParts {
  /** Begins an orderly shutdown. */
  readonly quit: () => void;
  /** Of the node, for the links that it is told to make. */
  readonly tls: LinkTls;
  /** Where the node's own NBD servers listen. */
  readonly listeners: () => readonly Address[];
}

/**
 * For a node that can take a replica.
 * @param primary throws while it can't
 */
export function replicaCommands(
  primary: () => Primary,
  { quit, tls, listeners }: ReplicaCommandsParts,
): QmpCommand[] {
  return [
    qmpCommand({
      name: "x-repl-switch-over",
      arguments: z.strictObject({}),
      run: async () => {
        const node = primary();
        try {
          return await node.switchOver();
        } finally {
          // It has handed over, or may have: it must not serve the disk any more.
          if (node.isHandedOver || node.brokenPromise() !== null) quit();
        }
      },
    }),
    qmpCommand({
      name: "x-repl-attach",
      arguments: z.strictObject({
        replica: replicaField,
        "replica-qmp": addressField.optional(),
        "checkpoint-interval": durationField.optional(),
      }),
      run: async ({ replica: uri, "replica-qmp": control, "checkpoint-interval": intervalMs }) => {
        if (control === undefined && intervalMs !== undefined && intervalMs > 0) {
          throw new ConfigError(
            "no-control",
            "checkpoint-interval: needs replica-qmp: without it a manager drives the checkpoints",
          );
        }
        const replica = replicaOf(uri, control ?? null, tls);
        refuseItself(replica, listeners());
        await primary().attach(replica, intervalMs);
        return {};
      },
    }),
    qmpCommand({
      name: "x-repl-verify",
      arguments: z.strictObject({
        disk: z.string().optional(),
        repair: z.boolean().optional(),
        speed: z.int().nonnegative().optional(),
      }),
      run: ({ disk, repair = false, speed }) => {
        const { verifier, rate } = primary();
        verifier.start({ disk: disk ?? null, repair, bytesPerSecond: speed ?? rate.bytesPerSecond });
        return Promise.resolve({});
      },
    }),
    qmpCommand({
      name: "x-repl-detach",
      arguments: z.strictObject({}),
      run: async () => {
        await primary().detach();
        return {};
      },
    }),
  ];
}

export function secondaryPairCommands(secondary: Secondary): QmpCommand[] {
  return [
    qmpCommand({
      name: "x-repl-handshake",
      arguments: helloSchema,
      run: async (hello) => {
        refuseMismatch(secondary, hello);
        const { isKnown: known, tenure, changed, memory, writer } = await secondary.introduce(hello);
        return {
          known,
          tenure,
          changed,
          memory,
          writer,
          epoch: secondary.epoch,
          stage: secondary.stage,
          version: HANDSHAKE_VERSION,
        };
      },
    }),
    qmpCommand({
      name: "x-repl-digest",
      arguments: digestRequestSchema,
      run: async (request) => ({ digests: await answerDigests(secondary, request) }),
    }),
    qmpCommand({
      name: "x-repl-checkpoint",
      arguments: z.strictObject({
        session: z.string().optional(),
        epoch: z.int().positive().optional(),
        prepare: z.boolean().optional(),
      }),
      run: async ({ session, epoch, prepare = false }) => {
        if (prepare) {
          await secondary.prepareCheckpoint(epoch ?? secondary.epoch + 1);
          return { epoch: secondary.epoch };
        }
        // A promoted node takes its checkpoints as any primary, and none before its failover is over.
        const isOwn = isPromoted(secondary.stage) && session === undefined;
        if (isOwn) return { epoch: await secondary.promoted.checkpoint() };
        const number = await secondary.checkpoint({ session: session ?? null, epoch: epoch ?? null });
        // A primary goes on with its guests at once, and waits for the event; anybody else goes by the answer.
        if (session === undefined) await secondary.checkpointDurable();
        return { epoch: number };
      },
    }),
    qmpCommand({
      name: "x-repl-take-over",
      arguments: z.strictObject({ primary: z.string(), epoch: z.int().positive() }),
      run: async ({ primary, epoch }) => ({ generation: await secondary.takeOver(primary, epoch) }),
    }),
    qmpCommand({
      name: "x-repl-failover",
      arguments: failoverArguments,
      run: async ({ to = "checkpoint", "dry-run": isDryRun = false }) => {
        const plan = failoverPlan(secondary, to, isDryRun);
        if (!isDryRun) await secondary.failOver(to);
        return plan;
      },
    }),
  ];
}

function refuseMismatch(secondary: Secondary, hello: z.output<typeof helloSchema>): void {
  if (hello.version !== HANDSHAKE_VERSION) {
    throw new NegotiationError(
      "version",
      `the secondary speaks version ${HANDSHAKE_VERSION} of the handshake, the primary ${hello.version}: run the same release on both`,
    );
  }
  for (const { name, size } of hello.disks) {
    const disk = secondary.disks.find((candidate) => candidate.name === name);
    if (disk === undefined) {
      const names = secondary.disks.map((candidate) => candidate.name).join(", ");
      throw new NegotiationError("no-such-disk", `the secondary has no disk ${name}, only ${names}`);
    }
    const { sizeBytes } = disk.disk.info;
    if (sizeBytes !== size) {
      throw new NegotiationError(
        "size-mismatch",
        `disk ${name} has ${size} bytes on the primary and ${sizeBytes} on the secondary: start the smaller one with --grow ${name}=${Math.max(size, sizeBytes)}, or give it another disk`,
      );
    }
  }
  const missing = secondary.disks.find(({ name }) => !hello.disks.some((disk) => disk.name === name));
  if (missing !== undefined) {
    throw new NegotiationError(
      "no-such-disk",
      `the secondary's disk ${missing.name} is not replicated by the primary`,
    );
  }
}

function failoverPlan(secondary: Secondary, to: FailoverPlan["to"], dryRun: boolean): FailoverPlan {
  const outcomes = secondary.failoverOptions().map((option): FailoverOutcome => ({
    to: option.to,
    possible: option.refusal === null,
    reason: option.refusal,
    warning: option.warning,
    lost: option.lost,
  }));
  const chosen = outcomes.find((outcome) => outcome.to === to);
  if (chosen === undefined) throw new NegotiationError("bad-argument", `there is no failover to ${to}`);
  const { checkpointAt } = secondary.metadata;
  return {
    ...chosen,
    dryRun,
    epoch: secondary.epoch,
    lastCheckpoint: checkpointAt === null ? null : { epoch: secondary.epoch, at: checkpointAt },
    alternatives: outcomes.filter((outcome) => outcome !== chosen),
  };
}

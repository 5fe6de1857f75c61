/** What a primary says to its secondary beside the data: handshake, checkpoint, heartbeat. Over QMP. */
import { z } from "zod";
import { LinkError, ProtocolError } from "../errors.js";
import type { QmpClient } from "../qmp/client.js";
import { QmpError, STOPPING } from "../qmp/errors.js";
import { changesSummarySchema } from "./changes-summary.js";

/** Version of the handshake; a node refuses another's. */
export const HANDSHAKE_VERSION = 6;

/** Told by a secondary when a checkpoint is durable, with its epoch. */
export const CHECKPOINT_EVENT = "X_REPL_CHECKPOINT";

/** Told by a secondary when one is not, and won't be without somebody's help, with its epoch and the reason. */
export const CHECKPOINT_FAILED_EVENT = "X_REPL_CHECKPOINT_FAILED";

/** Told by a secondary that can't go back to its checkpoint any more, when that happens and at each handshake. */
export const ROLLBACK_LOST_EVENT = "X_REPL_ROLLBACK_LOST";

/** Arguments of `x-repl-handshake`. */
export const helloSchema = z.strictObject({
  version: z.int(),
  /** Names the primary, whichever life it is in. */
  primary: z.string().min(1).max(64),
  /** Names this handshake. */
  session: z.string().min(1).max(64),
  generation: z.uuid(),
  ancestors: z.array(z.uuid()).max(64),
  /**
   * The tenures that the primary's dirty maps tell of; none: one of them tells nothing of any replica. They are several
   * if the primary ended while it gave them a new one.
   */
  tenures: z.array(z.uuid()).max(64),
  /** What the primary believes this replica to lack, for people. */
  dirty: changesSummarySchema,
  epoch: z.int().nonnegative(),
  disks: z.array(z.strictObject({ name: z.string(), size: z.int().positive() })).min(1),
});

const welcomeSchema = z.object({
  /** Whether the primary's dirty maps tell all that this replica lacks. */
  known: z.boolean(),
  /** Names the time from now on; to be stored with the dirty maps before anything is written. */
  tenure: z.uuid(),
  /** What the replica changed by itself when it was a primary: disk by disk, ranges of bytes. */
  changed: z.record(z.string(), z.array(z.tuple([z.int().nonnegative(), z.int().positive()]))),
  /**
   * Names what the replica has in memory: if it is the same as at the last handshake, the replica still has all that it acknowledged
   * since, durable or not.
   */
  memory: z.uuid(),
  /** For writerExport(); null: the exports are as they are for anybody. */
  writer: z.uuid().nullable(),
  epoch: z.int().nonnegative(),
  stage: z.string(),
});

export type Hello = z.output<typeof helloSchema>;
export type Welcome = z.output<typeof welcomeSchema>;

/**
 * The name by which a primary asks for the export of a disk after its handshake. A secret of the two: who knows it is the primary
 * that introduced itself, and nobody else writes.
 */
export function writerExport(exportName: string, writer: string): string {
  return `${exportName}@${writer}`;
}

/** A checkpoint that a replica can't go back to. */
export interface LostRollback {
  /** The epoch that the checkpoint began. */
  readonly epoch: number;
  /** One line for people. */
  readonly reason: string;
}

/** A checkpoint that did not become durable on a replica. */
export interface FailedCheckpoint {
  /** The epoch that it began. */
  readonly epoch: number;
  /** One line for people, with what to do. */
  readonly reason: string;
}

/** What a replica tells unasked. */
export interface ReplicaControlEvents {
  /** A checkpoint is as durable there as it ever will be; `epoch` is the one that it began. */
  durable(epoch: number): void;
  /** Never told by a QEMU. */
  checkpointFailed(failed: FailedCheckpoint): void;
  /** Never told by a QEMU. */
  rollbackLost(lost: LostRollback): void;
}

/** A connection to whoever commands the replica: a node of ours, or a QEMU (qemu-control.ts). */
export interface ReplicaControl {
  /** Resolves with the reason when the connection has ended, with null after close(). */
  readonly ended: Promise<Error | null>;
  /** Whether `x-repl-digest` can be asked of it. */
  readonly hasDigests: boolean;
  /** @throws QmpError or StateError if the secondary refuses */
  handshake(hello: Hello): Promise<Welcome>;
  /** Does for that epoch whatever needs no write to wait; it may begin or not. */
  prepareCheckpoint(epoch: number): Promise<void>;
  /** Begins an epoch; resolves when the secondary's disks are in it. No write is under way, and none begins. */
  checkpoint(session: string, epoch: number): Promise<void>;
  /** Has the secondary take over, if nothing changed since the checkpoint `epoch`. @returns its generation */
  takeOver(primary: string, epoch: number): Promise<string>;
  /** @throws LinkError if there is no answer in time, StateError if the replica must not be written to any more */
  heartbeat(): Promise<void>;
  close(): Promise<void>;
}

/** What a control needs of a connection to a QMP server. */
export type QmpConnection = Pick<QmpClient, "ended" | "execute" | "onEvent" | "close">;

/** The control of a secondary of ours. */
export class NodeControl implements ReplicaControl {
  readonly hasDigests = true;
  readonly #client: QmpConnection;
  readonly #timeoutMs: number;

  constructor(client: QmpConnection, timeoutMs: number, events: ReplicaControlEvents) {
    this.#client = client;
    this.#timeoutMs = timeoutMs;
    client.onEvent(({ event, data }) => {
      const { epoch, reason } = data;
      if (typeof epoch !== "number") return;
      if (event === CHECKPOINT_EVENT) events.durable(epoch);
      if (typeof reason !== "string") return;
      if (event === CHECKPOINT_FAILED_EVENT) events.checkpointFailed({ epoch, reason });
      if (event === ROLLBACK_LOST_EVENT) events.rollbackLost({ epoch, reason });
    });
  }

  get ended(): Promise<Error | null> {
    return this.#client.ended;
  }

  async handshake(hello: Hello): Promise<Welcome> {
    return parse(welcomeSchema, await this.#execute("x-repl-handshake", hello), "x-repl-handshake");
  }

  async prepareCheckpoint(epoch: number): Promise<void> {
    await this.#execute("x-repl-checkpoint", { epoch, prepare: true });
  }

  async checkpoint(session: string, epoch: number): Promise<void> {
    await this.#execute("x-repl-checkpoint", { session, epoch });
  }

  async takeOver(primary: string, epoch: number): Promise<string> {
    const answer = await this.#execute("x-repl-take-over", { primary, epoch });
    return parse(z.object({ generation: z.uuid() }), answer, "x-repl-take-over").generation;
  }

  async heartbeat(): Promise<void> {
    await this.#execute("query-status", {});
  }

  close(): Promise<void> {
    return this.#client.close();
  }

  async #execute(command: string, args: object): Promise<unknown> {
    try {
      return await this.#client.execute(command, args, { timeoutMs: this.#timeoutMs });
    } catch (error) {
      // It is as good as gone, which is no refusal: it may be back at once.
      if (error instanceof QmpError && error.code === STOPPING)
        throw new LinkError(STOPPING, "the secondary is stopping", { cause: error });
      throw error;
    }
  }
}

function parse<T>(schema: z.ZodType<T>, answer: unknown, command: string): T {
  const parsed = schema.safeParse(answer);
  if (parsed.success) return parsed.data;
  throw new ProtocolError(
    "bad-answer",
    `the secondary's answer to ${command} makes no sense: ${parsed.error.message}`,
  );
}

/** How a primary commands its replica: handshake, checkpoint, heartbeat, switch-over. */
import { z } from "zod";
import { LinkError, ProtocolError } from "../../errors.js";
import type { QmpClient } from "../../qmp/client.js";
import { QmpError, STOPPING } from "../../qmp/errors.js";
import {
  CHECKPOINT_EVENT,
  CHECKPOINT_FAILED_EVENT,
  type FailedCheckpoint,
  type Hello,
  type LostRollback,
  ROLLBACK_LOST_EVENT,
  type Welcome,
  welcomeSchema,
} from "../protocol.js";

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

/** What a primary says to its secondary beside the data: handshake, checkpoint, heartbeat. Over QMP. */
import { z } from "zod";
import { ProtocolError } from "../errors.js";
import type { Address } from "../net/address.js";
import { QmpClient } from "../qmp/client.js";

/** Version of the handshake; a node refuses another's. */
export const HANDSHAKE_VERSION = 2;

/** Told by a secondary when a checkpoint is durable, with its epoch. */
export const CHECKPOINT_EVENT = "X_REPL_CHECKPOINT";

/** Arguments of `x-repl-handshake`. */
export const helloSchema = z.strictObject({
  version: z.int(),
  /** Names the primary, whichever life it is in. */
  primary: z.string().min(1).max(64),
  /** Names one life of the primary's process. */
  session: z.string().min(1).max(64),
  generation: z.uuid(),
  ancestors: z.array(z.uuid()).max(64),
  /** The tenure that the primary's dirty maps tell of; null: they tell nothing of any replica. */
  tenure: z.uuid().nullable(),
  /** Bytes that the primary believes this replica to lack, for people. */
  dirty: z.int().nonnegative(),
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
  epoch: z.int().nonnegative(),
  stage: z.string(),
});

export type Hello = z.output<typeof helloSchema>;
export type Welcome = z.output<typeof welcomeSchema>;

export class ReplicaControl {
  readonly #client: QmpClient;
  readonly #timeoutMs: number;
  readonly #onDurable: (epoch: number) => void;

  private constructor(client: QmpClient, timeoutMs: number, onDurable: (epoch: number) => void) {
    this.#client = client;
    this.#timeoutMs = timeoutMs;
    this.#onDurable = onDurable;
    client.onEvent(({ event, data }) => {
      const epoch = data["epoch"];
      if (event === CHECKPOINT_EVENT && typeof epoch === "number") this.#onDurable(epoch);
    });
  }

  /** @throws UnreachableError */
  static async connect(
    address: Address,
    timeoutMs: number,
    onDurable: (epoch: number) => void,
  ): Promise<ReplicaControl> {
    return new ReplicaControl(await QmpClient.connect(address, { timeoutMs }), timeoutMs, onDurable);
  }

  /** Resolves with the reason when the connection has ended, with null after close(). */
  get ended(): Promise<Error | null> {
    return this.#client.ended;
  }

  /** @throws QmpError if the secondary refuses */
  async handshake(hello: Hello): Promise<Welcome> {
    return parse(welcomeSchema, await this.#execute("x-repl-handshake", hello), "x-repl-handshake");
  }

  /** Begins an epoch; resolves when the secondary's disks are in it. */
  async checkpoint(session: string, epoch: number): Promise<void> {
    await this.#execute("x-repl-checkpoint", { session, epoch });
  }

  /** Has the secondary take over, if nothing changed since the checkpoint `epoch`. @returns its generation */
  async takeOver(primary: string, epoch: number): Promise<string> {
    const answer = await this.#execute("x-repl-take-over", { primary, epoch });
    return parse(z.object({ generation: z.uuid() }), answer, "x-repl-take-over").generation;
  }

  /** @throws LinkError if there is no answer in time */
  async heartbeat(): Promise<void> {
    await this.#execute("query-status", {});
  }

  close(): Promise<void> {
    return this.#client.close();
  }

  #execute(command: string, args: object): Promise<unknown> {
    return this.#client.execute(command, args, { timeoutMs: this.#timeoutMs });
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

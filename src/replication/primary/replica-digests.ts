/**
 * Asks the secondary for digests of its disks, over a QMP connection of its own: a QMP server runs the commands of a
 * connection one after the other, and heartbeats and checkpoints must not wait for reads of the disk.
 *
 * Invariants:
 * - At most two commands are under way: one that the secondary works on, and one that is there when it has finished that.
 *   What is asked meanwhile goes with the next one, as far as the bound on a command allows.
 * - Once an answer stays out, whatever is asked rejects: each command behind it would wait as long, and guests with all of them.
 */
import { asError, LinkError, ProtocolError } from "../../errors.js";
import type { Endpoint } from "../../net/endpoint.js";
import { type DigestRequest, digestAnswerSchema, MAX_DIGEST_BYTES } from "../digest.js";
import type { CommandConnection, ReplicaNetwork } from "./replica-network.js";

const COMMANDS_UNDER_WAY = 2;
/** As many as a command takes, with room for the digests of the smallest blocks. */
const RANGES_PER_COMMAND = 16;

interface Question {
  readonly disk: string;
  readonly offset: number;
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly resolve: (digests: readonly string[]) => void;
  readonly reject: (error: Error) => void;
}

export class ReplicaDigests {
  readonly #connect: () => Promise<CommandConnection>;
  readonly #timeoutMs: number;
  readonly #session: string;
  readonly #givenUp = new AbortController();
  /** Null: nothing has been asked yet. */
  #client: Promise<CommandConnection> | null = null;
  /** Not sent yet. */
  #questions: Question[] = [];
  readonly #unanswered = new Set<Question>();
  #underWay = 0;

  /** @param session of the primary that asks; it connects when it asks for the first time */
  constructor(
    network: Pick<ReplicaNetwork, "commands">,
    address: Endpoint,
    timeoutMs: number,
    session: string,
  ) {
    this.#connect = () => network.commands(address, timeoutMs, this.#givenUp.signal);
    this.#timeoutMs = timeoutMs;
    this.#session = session;
  }

  /**
   * One digest for each `blockBytes` of the range, which is at most MAX_DIGEST_BYTES.
   * @throws UnreachableError; LinkError if the connection is lost or the answer stays out; QmpError if the secondary refuses
   */
  of(disk: string, offset: number, lengthBytes: number, blockBytes: number): Promise<readonly string[]> {
    if (this.#givenUp.signal.aborted) return Promise.reject(asError(this.#givenUp.signal.reason));
    return new Promise((resolve, reject) => {
      const question = { disk, offset, lengthBytes, blockBytes, resolve, reject };
      this.#questions.push(question);
      this.#unanswered.add(question);
      this.#ask();
    });
  }

  /** Whatever is asked, or will be, rejects at once. */
  close(): void {
    this.#giveUp(new LinkError("closed", "the connection was closed"));
  }

  /** What is asked from now on rejects as well. */
  #giveUp(reason: Error): void {
    if (this.#givenUp.signal.aborted) return;
    for (const { reject } of this.#unanswered) reject(reason);
    this.#unanswered.clear();
    this.#questions = [];
    this.#givenUp.abort(reason);
    void this.#client?.then(
      (client) => client.close(),
      () => undefined,
    );
  }

  #ask(): void {
    while (this.#underWay < COMMANDS_UNDER_WAY && this.#questions.length > 0) {
      const batch = this.#takeBatch();
      this.#underWay++;
      void this.#execute(batch).finally(() => {
        this.#underWay--;
        this.#ask();
      });
    }
  }

  /** The first question, and those behind it that fit beside it and ask for blocks of the same size of the same disk. */
  #takeBatch(): Question[] {
    const first = this.#questions[0];
    const batch: Question[] = [];
    let bytes = 0;
    for (const question of this.#questions) {
      bytes += question.lengthBytes;
      const fits = bytes <= MAX_DIGEST_BYTES && batch.length < RANGES_PER_COMMAND;
      if (!fits || question.blockBytes !== first?.blockBytes || question.disk !== first.disk) break;
      batch.push(question);
    }
    this.#questions = this.#questions.slice(batch.length);
    return batch;
  }

  /** Settles the questions; never rejects. */
  async #execute(batch: readonly Question[]): Promise<void> {
    const request: DigestRequest = {
      session: this.#session,
      disk: batch[0]?.disk ?? "",
      block: batch[0]?.blockBytes ?? 0,
      ranges: batch.map(({ offset, lengthBytes }) => ({ offset, length: lengthBytes })),
    };
    try {
      this.#client ??= this.#connect();
      const client = await this.#client;
      const answer = await client.execute("x-repl-digest", request, { timeoutMs: this.#timeoutMs });
      const parsed = digestAnswerSchema.safeParse(answer);
      for (const [index, { lengthBytes, blockBytes, resolve }] of batch.entries()) {
        const digests = parsed.data?.digests[index];
        if (digests?.length !== Math.ceil(lengthBytes / blockBytes)) {
          throw new ProtocolError("bad-answer", "the secondary's answer to x-repl-digest makes no sense");
        }
        resolve(digests);
      }
    } catch (error) {
      if (error instanceof LinkError) this.#giveUp(error);
      for (const { reject } of batch) reject(asError(error));
    }
    for (const question of batch) this.#unanswered.delete(question);
  }
}

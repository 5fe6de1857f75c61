/**
 * Asks the secondary for digests of its disks, over a QMP connection of its own: a QMP server runs the commands of a
 * connection one after the other, and heartbeats and checkpoints must not wait for reads of the disk.
 *
 * Invariant: at most two commands are under way: one that the secondary works on, and one that is there when it has finished that.
 * What is asked meanwhile goes with the next one, as far as the bound on a command allows.
 */
import { asError, ProtocolError } from "../../errors.js";
import type { Endpoint } from "../../net/endpoint.js";
import { QmpClient } from "../../qmp/client.js";
import { type DigestRequest, digestAnswerSchema, MAX_DIGEST_BYTES } from "../digest.js";

const COMMANDS_UNDER_WAY = 2;
/** As many as a command takes, with room for the digests of the smallest blocks. */
const RANGES_PER_COMMAND = 16;

interface Question {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly resolve: (digests: readonly string[]) => void;
  readonly reject: (error: Error) => void;
}

export class ReplicaDigests {
  readonly #client: QmpClient;
  readonly #timeoutMs: number;
  readonly #session: string;
  readonly #disk: string;
  #questions: Question[] = [];
  #underWay = 0;

  private constructor(client: QmpClient, timeoutMs: number, session: string, disk: string) {
    this.#client = client;
    this.#timeoutMs = timeoutMs;
    this.#session = session;
    this.#disk = disk;
  }

  /** @throws UnreachableError */
  static async connect(
    address: Endpoint,
    timeoutMs: number,
    session: string,
    disk: string,
  ): Promise<ReplicaDigests> {
    return new ReplicaDigests(await QmpClient.connect(address, { timeoutMs }), timeoutMs, session, disk);
  }

  /**
   * One digest for each `blockBytes` of the range, which is at most MAX_DIGEST_BYTES.
   * @throws LinkError if the connection is lost or the answer stays out; QmpError if the secondary refuses
   */
  of(offset: number, lengthBytes: number, blockBytes: number): Promise<readonly string[]> {
    return new Promise((resolve, reject) => {
      this.#questions.push({ offset, lengthBytes, blockBytes, resolve, reject });
      this.#ask();
    });
  }

  /** Whatever is asked rejects. */
  close(): Promise<void> {
    return this.#client.close();
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

  /** The first question, and those behind it that fit beside it and ask for blocks of the same size. */
  #takeBatch(): Question[] {
    const blockBytes = this.#questions[0]?.blockBytes;
    const batch: Question[] = [];
    let bytes = 0;
    for (const question of this.#questions) {
      bytes += question.lengthBytes;
      const fits = bytes <= MAX_DIGEST_BYTES && batch.length < RANGES_PER_COMMAND;
      if (!fits || question.blockBytes !== blockBytes) break;
      batch.push(question);
    }
    this.#questions = this.#questions.slice(batch.length);
    return batch;
  }

  /** Settles the questions; never rejects. */
  async #execute(batch: readonly Question[]): Promise<void> {
    const request: DigestRequest = {
      session: this.#session,
      disk: this.#disk,
      block: batch[0]?.blockBytes ?? 0,
      ranges: batch.map(({ offset, lengthBytes }) => ({ offset, length: lengthBytes })),
    };
    try {
      const answer = await this.#client.execute("x-repl-digest", request, { timeoutMs: this.#timeoutMs });
      const parsed = digestAnswerSchema.safeParse(answer);
      for (const [index, { lengthBytes, blockBytes, resolve }] of batch.entries()) {
        const digests = parsed.data?.digests[index];
        if (digests?.length !== Math.ceil(lengthBytes / blockBytes)) {
          throw new ProtocolError("bad-answer", "the secondary's answer to x-repl-digest makes no sense");
        }
        resolve(digests);
      }
    } catch (error) {
      for (const { reject } of batch) reject(asError(error));
    }
  }
}

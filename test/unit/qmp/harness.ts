/** A QMP server on a unix socket in a directory of its own, and a client that speaks in raw bytes. */
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Address, socketOptions } from "../../../src/net/address.js";
import { QmpServer } from "../../../src/qmp/server.js";
import type { QmpCommand } from "../../../src/qmp/command.js";
import { memoryLogger } from "../../tools/memory-logger.js";

export interface Harness {
  readonly directory: string;
  readonly address: Address & { kind: "unix" };
  readonly server: QmpServer;
  /** Lines of the log, parsed. */
  readonly logged: Record<string, unknown>[];
  stop(): Promise<void>;
}

export async function startServer(commands: readonly QmpCommand[] = []): Promise<Harness> {
  const directory = await mkdtemp(join(tmpdir(), "qmp-"));
  const address = { kind: "unix", path: join(directory, "qmp.sock") } as const;
  const logged: Record<string, unknown>[] = [];
  const server = new QmpServer({ commands, log: memoryLogger(logged), version: "1.2.3", now: () => 1500.25 });
  await server.listen(address);
  return {
    directory,
    address,
    server,
    logged,
    stop: async () => {
      await server.close();
      await rm(directory, { recursive: true });
    },
  };
}

/** Sends bytes, and reads lines as JSON, one promise for each. */
export class RawClient {
  readonly socket: Socket;
  readonly closed: Promise<void>;
  readonly #lines: AsyncIterator<unknown>;

  constructor(address: Address) {
    this.socket = connect({ ...socketOptions(address), allowHalfOpen: true });
    this.closed = new Promise((resolve) =>
      this.socket.once("close", () => {
        resolve();
      }),
    );
    this.socket.on("error", () => this.socket.destroy());
    this.#lines = readLines(this.socket);
  }

  /** Connected, greeted and negotiated. */
  static async ready(address: Address): Promise<RawClient> {
    const client = new RawClient(address);
    await client.next();
    await client.ask({ execute: "qmp_capabilities" });
    return client;
  }

  async next(): Promise<unknown> {
    const result = await this.#lines.next();
    return result.done === true ? null : result.value;
  }

  ask(message: unknown): Promise<unknown> {
    this.send(JSON.stringify(message));
    return this.next();
  }

  send(text: string | Buffer): void {
    this.socket.write(text);
  }
}

async function* readLines(socket: Socket): AsyncGenerator {
  let text = "";
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    const lines = (text + chunk.toString()).split("\r\n");
    text = lines.pop() ?? "";
    for (const line of lines) yield JSON.parse(line);
  }
}

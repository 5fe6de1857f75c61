/** A QMP connection as text, for tests of what exactly is said. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";

import { waitFor } from "./wait-for.js";
import type { Workspace } from "./workspace.js";

export type QmpMessage = Readonly<Record<string, unknown>>;

export class QmpSession {
  readonly #socket: Socket;
  readonly #messages: QmpMessage[] = [];
  #rest = "";

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding("utf8").on("data", (text: string) => {
      const lines = (this.#rest + text).split("\r\n");
      this.#rest = lines.pop() ?? "";
      this.#messages.push(...lines.map((line) => JSON.parse(line) as QmpMessage));
    });
  }

  static async connect(workspace: Workspace, path: string): Promise<QmpSession> {
    const socket = connect({ path });
    await once(socket, "connect");
    workspace.onEnd(() => Promise.resolve(socket.destroy()));
    return new QmpSession(socket);
  }

  send(text: string | Buffer): void {
    this.#socket.write(text);
  }

  /** The next message that is no event: the greeting or an answer. @throws if the connection ends, or none comes */
  answer(): Promise<QmpMessage> {
    return this.#take("an answer", (message) => !("event" in message));
  }

  /** The next event of that name. @throws if the connection ends, or none comes */
  event(name: string): Promise<QmpMessage> {
    return this.#take(name, (message) => message["event"] === name);
  }

  /** Whether such an event has come and was not taken. */
  has(name: string): boolean {
    return this.#messages.some((message) => message["event"] === name);
  }

  /** Sends a command as QEMU's managers write it, and returns its answer. */
  command(execute: string, args?: object): Promise<QmpMessage> {
    this.send(`${JSON.stringify({ execute, ...(args !== undefined && { arguments: args }) })}\r\n`);
    return this.answer();
  }

  async #take(what: string, isWanted: (message: QmpMessage) => boolean): Promise<QmpMessage> {
    await waitFor(
      what,
      () => this.#messages.some(isWanted) || this.#socket.destroyed,
      (isOver) => isOver,
    );
    const at = this.#messages.findIndex(isWanted);
    const [message] = at === -1 ? [] : this.#messages.splice(at, 1);
    if (message === undefined) throw new Error(`the QMP connection ended before ${what}`);
    return message;
  }
}

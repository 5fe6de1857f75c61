/**
 * One QMP client of the server (docs/interop/qmp-spec.txt of QEMU): negotiation, its commands one after the other,
 * and its share of the events.
 *
 * Invariants:
 * - At most one command runs; while it does, nothing more is read from the socket. So the only input
 *   held is one chunk of the socket and one unfinished message.
 * - Nothing but the greeting and error replies is sent before qmp_capabilities has succeeded.
 * - At most MAXIMUM_OUTPUT_BYTES wait for the client to read; one that lets more pile up is cut.
 */
import type { Socket } from "node:net";
import { NegotiationError, ReplError, describeError } from "../errors.js";
import type { Logger } from "../log.js";
import type { ClientLog } from "../net/client-log.js";
import { checkArguments } from "./command.js";
import type { QmpCommand, QmpContext } from "./command.js";
import { commandNotFound, errorBody } from "./errors.js";
import { JsonStream, isJsonObject, memberText } from "./json-stream.js";

/** Many times the largest reply; a client that is behind by this much doesn't read. */
const MAXIMUM_OUTPUT_BYTES = 1024 * 1024;

const REQUEST_MEMBERS = new Set(["execute", "arguments", "id"]);

interface Request {
  readonly execute: string;
  readonly arguments: unknown;
}

export interface QmpSessionOptions {
  readonly socket: Socket;
  readonly clientId: number;
  readonly commands: ReadonlyMap<string, QmpCommand>;
  readonly greeting: object;
  readonly log: Logger;
  /** Shared by all sessions of the server. */
  readonly clientLog: ClientLog;
}

export class QmpSession {
  readonly #socket: Socket;
  readonly #commands: ReadonlyMap<string, QmpCommand>;
  readonly #context: QmpContext;
  readonly #log: Logger;
  readonly #clientLog: ClientLog;
  readonly #input = new JsonStream();
  #negotiated = false;
  #ending = false;
  /** Settles when nothing runs; never rejects. */
  #idle: Promise<void> = Promise.resolve();

  constructor(options: QmpSessionOptions) {
    this.#socket = options.socket;
    this.#commands = options.commands;
    this.#context = { clientId: options.clientId };
    this.#log = options.log.child({ qmpClient: options.clientId });
    this.#clientLog = options.clientLog;
    this.#socket.on("data", (chunk: Buffer) => {
      this.#socket.pause();
      this.#idle = this.#serve(chunk);
    });
    // Who pipes commands in has said all, and waits for the answers.
    this.#socket.on("end", () => {
      void this.#idle.then(() => {
        this.#socket.destroySoon();
      });
    });
    this.#socket.on("error", (error) => {
      this.#log.debug({ error: error.message }, "QMP connection failed");
    });
    this.#send(options.greeting);
  }

  /** Sends an event, unless the client has not negotiated yet. */
  event(message: object): void {
    if (this.#negotiated) this.#send(message);
  }

  /** Takes no more commands; resolves when the one that runs has been answered. The socket goes on living. */
  async finish(): Promise<void> {
    this.#ending = true;
    await this.#idle;
  }

  async #serve(chunk: Buffer): Promise<void> {
    for (const message of this.#input.push(chunk)) {
      if (this.#ending || this.#socket.destroyed) return;
      if (message.kind === "value") await this.#answer(message.value, message.text);
      else this.#send({ error: errorBody(new NegotiationError("bad-json", message.description)) });
    }
    this.#socket.resume();
  }

  async #answer(message: unknown, text: string): Promise<void> {
    const id = isJsonObject(message) ? memberText(text, "id") : null;
    try {
      const request = checkRequest(message);
      this.#send({ return: (await this.#execute(request)) ?? {} }, id);
    } catch (error) {
      if (!(error instanceof ReplError)) {
        this.#log.error({ err: error }, `QMP command failed unexpectedly: ${describeError(error)}`);
      }
      this.#send({ error: errorBody(error) }, id);
    }
  }

  async #execute(request: Request): Promise<unknown> {
    const command = this.#commands.get(request.execute);
    const negotiation = request.execute === "qmp_capabilities";
    if (!this.#negotiated && !negotiation) {
      throw commandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'");
    }
    if (command === undefined) throw commandNotFound(`The command ${request.execute} has not been found`);
    const args = checkArguments(command, request.arguments);
    if (this.#negotiated && negotiation) {
      throw commandNotFound("Capabilities negotiation is already complete, command ignored");
    }
    this.#log.debug({ command: request.execute }, "QMP command");
    const result = await command.run(args, this.#context);
    if (negotiation) this.#negotiated = true;
    return result;
  }

  /** @param id echoed as it was written, in every reply to a request that is an object, right or wrong; null: it had none */
  #send(message: object, id: string | null = null): void {
    if (!this.#socket.writable) return;
    const text = JSON.stringify(message);
    this.#socket.write(id === null ? `${text}\r\n` : `${text.slice(0, -1)},"id":${id}}\r\n`);
    if (this.#socket.writableLength > MAXIMUM_OUTPUT_BYTES) {
      const event = { host: this.#socket.remoteAddress ?? null, code: "does-not-read" };
      const details = { qmpClient: this.#context.clientId, waitingBytes: this.#socket.writableLength };
      this.#clientLog.warn(event, () => details, "QMP client does not read: cut");
      this.#socket.destroy();
    }
  }
}

/** In the words of QEMU's qapi/qmp-dispatch.c. */
function checkRequest(message: unknown): Request {
  if (!isJsonObject(message)) throw malformed("QMP input must be a JSON object");
  for (const member of Object.keys(message)) {
    if (!REQUEST_MEMBERS.has(member)) throw malformed(`QMP input member '${member}' is unexpected`);
  }
  const { execute, arguments: args = {} } = message;
  if (execute === undefined) throw malformed("QMP input lacks member 'execute'");
  if (typeof execute !== "string") throw malformed("QMP input member 'execute' must be a string");
  if (!isJsonObject(args)) throw malformed("QMP input member 'arguments' must be an object");
  return { execute, arguments: args };
}

function malformed(description: string): NegotiationError {
  return new NegotiationError("bad-request", description);
}

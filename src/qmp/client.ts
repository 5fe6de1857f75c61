/**
 * A QMP client: the command line towards a node, and the primary towards its secondary, be that ours or QEMU.
 *
 * Invariants:
 * - Commands are numbered; a reply settles the command with its number, a reply without one ends the connection.
 * - When the connection ends, for whatever reason, every command and wait that is open rejects with LinkError.
 * - One message holds at most MAXIMUM_REPLY_BYTES; a server that sends more is cut.
 */
import { EventEmitter } from "node:events";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { TLSSocket, connect as connectTls } from "node:tls";
import { type Cancel, afterRunning, systemClock } from "../clock.js";
import { LinkError, ProtocolError, UnreachableError, asError, describeError } from "../errors.js";
import { formatAddress, socketOptions } from "../net/address.js";
import type { Address } from "../net/address.js";
import type { Endpoint } from "../net/endpoint.js";
import { KEEPALIVE } from "../net/keepalive.js";
import { setOption } from "../net/socket-option.js";
import { tlsClientOptions } from "../net/tls/client.js";
import { tlsReason } from "../net/tls/reason.js";
import { QmpError } from "./errors.js";
import type { QmpErrorKind } from "./errors.js";
import { JsonStream, isJsonObject } from "./json-stream.js";
import type { JsonObject } from "./json-stream.js";

/** QEMU's longest reply, to query-qmp-schema, is some 300 KiB. */
const MAXIMUM_REPLY_BYTES = 4 * 1024 * 1024;

/** For what needs no work of the node beyond answering. */
const DEFAULT_TIMEOUT_MS = 10_000;

export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
}

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
  readonly cancelTimer: Cancel;
}

export class QmpClient {
  readonly address: Address;
  /** Resolves when the connection has ended: null if close() did it, otherwise why. Never rejects. */
  readonly ended: Promise<Error | null>;
  readonly #socket: Socket;
  readonly #input = new JsonStream(MAXIMUM_REPLY_BYTES);
  readonly #pending = new Map<number, Pending>();
  readonly #events = new EventEmitter();
  #lastId = 0;
  /** Commands without an answer so far, also those that nobody waits for any more. */
  #unanswered = 0;
  #greeted: { resolve: () => void; reject: (error: Error) => void } | null = null;
  #failure: Error | null = null;
  #closing = false;

  private constructor(address: Address, socket: Socket) {
    this.address = address;
    this.#socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.#receive(chunk);
    });
    socket.on("error", (error) => {
      const cause = socket instanceof TLSSocket ? new Error(tlsReason(error), { cause: error }) : error;
      this.#failure ??= new LinkError("connection-lost", `${this.#peer()}: ${cause.message}`, { cause });
    });
    this.ended = new Promise((resolve) => {
      socket.once("close", () => {
        const reason =
          this.#failure ?? new LinkError("connection-lost", `${this.#peer()} closed the connection`);
        this.#abandon(reason);
        resolve(this.#closing ? null : reason);
      });
    });
  }

  /**
   * Connects, over TLS if the endpoint says so, reads the greeting and negotiates, all within the limit, or until it is aborted.
   * @throws UnreachableError that names the address; ConfigError if the files for TLS can't be used
   */
  static async connect(
    address: Endpoint,
    options: { readonly timeoutMs?: number; readonly signal?: AbortSignal } = {},
  ): Promise<QmpClient> {
    const { signal } = options;
    const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const socket = open(address);
    const client = new QmpClient(address, socket);
    const isPlain = address.kind === "tcp" && !(socket instanceof TLSSocket);
    const hint = isPlain ? ", as from a server that waits for TLS" : "";
    const late = new Error(`no answer within ${timeoutMs} ms${hint}`);
    const cancelTimer = afterRunning(systemClock, timeoutMs, () => socket.destroy(late));
    const abort = (): void => {
      socket.destroy(new Error("nobody waits for it any more"));
    };
    signal?.addEventListener("abort", abort);
    try {
      await client.#greeting();
      await client.execute("qmp_capabilities", {}, { timeoutMs });
      return client;
    } catch (error) {
      socket.destroy();
      const isLost = error instanceof LinkError && error.code === "connection-lost";
      const reason = isLost && error.cause !== undefined ? error.cause : error;
      // A server looks at our certificate when TLS is up, and can't tell us any more what is wrong with it.
      const isHungUp = isLost && reason === error && socket instanceof TLSSocket;
      const doubt = isHungUp ? ", as a server does that refuses our certificate: its log tells why" : "";
      throw new UnreachableError(
        "unreachable",
        `can't reach a QMP server at ${formatAddress(address)}: ${describeError(reason)}${doubt}`,
        { cause: error },
      );
    } finally {
      cancelTimer();
      signal?.removeEventListener("abort", abort);
    }
  }

  /**
   * Runs a command; resolves with its `return` member.
   * @throws QmpError with the server's class, text and code, if it refuses
   * @throws LinkError "connection-lost", or "timeout" when there is no reply in time; the command may still run then
   */
  execute(name: string, args: object = {}, options: { readonly timeoutMs?: number } = {}): Promise<unknown> {
    const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    if (!this.#socket.writable) return Promise.reject(this.#gone());
    this.#lastId += 1;
    this.#unanswered++;
    const id = this.#lastId;
    return new Promise((resolve, reject) => {
      const cancelTimer = afterRunning(systemClock, timeoutMs, () => {
        this.#pending.delete(id);
        reject(new LinkError("timeout", `${this.#peer()} did not answer "${name}" within ${timeoutMs} ms`));
      });
      this.#pending.set(id, { resolve, reject, cancelTimer });
      this.#socket.write(`${JSON.stringify({ execute: name, arguments: args, id })}\n`);
    });
  }

  /** Calls back for each event from now on; the function returned ends that. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#events.on("event", listener);
    return () => {
      this.#events.off("event", listener);
    };
  }

  /**
   * The next event of that name for which `matches` holds.
   * @throws LinkError "connection-lost" or "timeout"
   */
  waitForEvent(
    name: string,
    options: { readonly timeoutMs?: number; readonly matches?: (event: QmpEvent) => boolean } = {},
  ): Promise<QmpEvent> {
    const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    if (this.#socket.destroyed) return Promise.reject(this.#gone());
    return new Promise((resolve, reject) => {
      const finish = (settle: () => void): void => {
        cancelTimer();
        stopListening();
        this.#events.off("ended", onEnded);
        settle();
      };
      const onEnded = (reason: Error): void => {
        finish(() => {
          reject(reason);
        });
      };
      const stopListening = this.onEvent((event) => {
        if (event.event !== name || options.matches?.(event) === false) return;
        finish(() => {
          resolve(event);
        });
      });
      const cancelTimer = afterRunning(systemClock, timeoutMs, () => {
        onEnded(new LinkError("timeout", `${this.#peer()} sent no event ${name} within ${timeoutMs} ms`));
      });
      this.#events.on("ended", onEnded);
    });
  }

  /**
   * Ends the connection; what is open rejects, and what has not been delivered yet is not carried out later, when nobody counts on it.
   * Resolves when the socket is closed. Idempotent.
   */
  async close(): Promise<void> {
    this.#closing = true;
    // The kernel would go on sending it for a quarter of an hour, also when this process has ended, until the network lets it through.
    if (this.#unanswered > 0) {
      setOption(this.#socket, (system, fd) => {
        system.setLingerNot(fd);
      });
    }
    this.#socket.destroy();
    await this.ended;
  }

  #greeting(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#greeted = { resolve, reject };
    });
  }

  #receive(chunk: Buffer): void {
    for (const message of this.#input.push(chunk)) {
      try {
        if (message.kind === "error") throw new ProtocolError("bad-json", message.description);
        this.#dispatch(message.value);
      } catch (error) {
        this.#failure ??= asError(error);
        this.#socket.destroy();
        return;
      }
    }
  }

  #dispatch(message: unknown): void {
    if (!isJsonObject(message)) throw new ProtocolError("bad-message", "the QMP server sent no object");
    if ("QMP" in message) {
      this.#greeted?.resolve();
    } else if (typeof message["event"] === "string") {
      this.#events.emit("event", eventOf(message["event"], message));
    } else if ("return" in message || "error" in message) {
      this.#settle(message);
    } else {
      throw new ProtocolError("bad-message", "the QMP server sent neither a reply nor an event");
    }
  }

  #settle(message: JsonObject): void {
    const { id, error } = message;
    if (typeof id !== "number") {
      throw new ProtocolError(
        "bad-message",
        `the QMP server did not understand us: ${JSON.stringify(error ?? id)}`,
      );
    }
    this.#unanswered--;
    // Not there: its time ran out.
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    this.#pending.delete(id);
    pending.cancelTimer();
    if (error === undefined) pending.resolve(message["return"]);
    else pending.reject(errorOf(error));
  }

  #abandon(reason: Error): void {
    this.#greeted?.reject(reason);
    for (const { reject, cancelTimer } of this.#pending.values()) {
      cancelTimer();
      reject(reason);
    }
    this.#pending.clear();
    this.#events.emit("ended", reason);
  }

  #gone(): Error {
    return this.#failure ?? new LinkError("connection-lost", `the connection to ${this.#peer()} has ended`);
  }

  #peer(): string {
    return formatAddress(this.address);
  }
}

function open(address: Endpoint): Socket {
  const options = socketOptions(address);
  if (address.tls === undefined) return connect({ ...options, noDelay: true, ...KEEPALIVE });
  const host = address.kind === "tcp" ? address.host : null;
  return connectTls({ ...options, ...tlsClientOptions(address.tls, host) })
    .setNoDelay(true)
    .setKeepAlive(true, KEEPALIVE.keepAliveInitialDelay);
}

function eventOf(event: string, message: JsonObject): QmpEvent {
  const { data, timestamp } = message;
  const { seconds, microseconds } = isJsonObject(timestamp) ? timestamp : {};
  return {
    event,
    data: isJsonObject(data) ? data : {},
    timestamp: { seconds: Number(seconds ?? 0), microseconds: Number(microseconds ?? 0) },
  };
}

/** QEMU sends `class` and `desc` alone. */
function errorOf(body: unknown): QmpError {
  const { class: qmpClass, desc, code, kind } = isJsonObject(body) ? body : {};
  return new QmpError(
    typeof qmpClass === "string" ? qmpClass : "GenericError",
    typeof code === "string" ? code : "qmp-error",
    typeof desc === "string" ? desc : "the QMP server gave no reason",
    isKind(kind) ? kind : "failed",
  );
}

function isKind(value: unknown): value is QmpErrorKind {
  return value === "state" || value === "config" || value === "failed";
}

/** A TCP link between two nodes that can fail in the ways a network does, also at a moment of the conversation. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { setImmediate as turn, setTimeout as sleep } from "node:timers/promises";

import { parseAddress, socketOptions } from "../../src/net/address.js";
import { waitFor } from "./wait-for.js";
import type { Workspace } from "./workspace.js";

/**
 * `up`: passes everything. `stalled`: takes nothing more, as a peer whose buffers are full; what was underway
 * arrives when it is up again. `black-hole`: takes everything and delivers nothing, as a router that lost its way.
 * `slow`: everything arrives later. `trickling`: a few bytes at a time.
 */
type Mode = "up" | "stalled" | "black-hole" | "slow" | "trickling";

/** Which of the two a connection's end belongs to: who connected, or the target. */
export type End = "near" | "far";

const DELAY_MS = 60;
/** Small enough that each header, line and length comes in pieces. */
const TRICKLE_BYTES = 11;

interface Trigger {
  /** Seen one after the other, each going to `to`. */
  readonly marks: { readonly to: End; readonly bytes: Buffer }[];
  readonly act: () => void;
}

export class LinkProxy {
  readonly #server: Server;
  readonly #target: string;
  readonly #lanes = new Set<Lane>();
  #triggers: Trigger[] = [];
  #mode: Mode = "up";
  #isCut = false;

  private constructor(target: string, server: Server) {
    this.#target = target;
    this.#server = server;
    server.on("connection", (socket) => {
      this.#accept(socket);
    });
  }

  /** @param target HOST:PORT or unix:PATH */
  static async start(workspace: Workspace, target: string): Promise<LinkProxy> {
    const proxy = new LinkProxy(target, createServer({ noDelay: true }));
    proxy.#server.listen({ host: "127.0.0.1", port: 0 });
    await once(proxy.#server, "listening");
    workspace.onEnd(() => proxy.#close());
    return proxy;
  }

  /** HOST:PORT to connect to. */
  get address(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Resets every connection, and those to come. */
  cut(): void {
    this.#isCut = true;
    this.reset();
  }

  /** Resets every connection; the next ones pass. */
  reset(): void {
    for (const lane of this.#lanes) lane.reset();
  }

  stall(): void {
    this.#become("stalled");
  }

  blackHole(): void {
    this.#become("black-hole");
  }

  delay(): void {
    this.#become("slow");
  }

  trickle(): void {
    this.#become("trickling");
  }

  /** One end of every connection is gone, and the other is not told; the next connections pass. */
  halfOpen(gone: End): void {
    for (const lane of this.#lanes) lane.isDead = true;
    for (const lane of this.#lanes) if (lane.to !== gone) lane.reset();
  }

  /** The link works again. Connections that lost bytes meanwhile are reset, for they would go on in the middle. */
  heal(): void {
    if (this.#mode === "black-hole") this.reset();
    for (const lane of this.#lanes) if (lane.isDead) lane.reset();
    this.#isCut = false;
    this.#become("up");
  }

  /**
   * Acts when the marks have come by, one after the other, before the last of them is passed on.
   * @param marks text or bytes, and whom they go to
   * @returns a promise that resolves then
   */
  when(act: () => void, ...marks: readonly (readonly [to: End, mark: string | Buffer])[]): Promise<unknown> {
    const seen = { isOver: false };
    this.#triggers.push({
      marks: marks.map(([to, mark]) => ({ to, bytes: Buffer.from(mark) })),
      act: () => {
        seen.isOver = true;
        act();
      },
    });
    const names = marks.map(([, mark]) => mark.toString("latin1")).join(", ");
    return waitFor(`the link to carry ${names}`, () => seen.isOver, Boolean);
  }

  #become(mode: Mode): void {
    this.#mode = mode;
    for (const lane of this.#lanes) lane.modeChanged();
  }

  #accept(near: Socket): void {
    if (this.#isCut) {
      near.on("error", ignoreReset).resetAndDestroy();
      return;
    }
    const far = connect({ ...socketOptions(parseAddress(this.#target)), noDelay: true });
    this.#pass(near, far, "far");
    this.#pass(far, near, "near");
  }

  #pass(from: Socket, target: Socket, to: End): void {
    const lane = new Lane({
      from,
      target,
      to,
      mode: () => this.#mode,
      seen: (bytes, isNewFrom) => {
        this.#look(bytes, isNewFrom, to);
      },
    });
    this.#lanes.add(lane);
    from.on("close", () => this.#lanes.delete(lane));
    lane.modeChanged();
  }

  #look(bytes: Buffer, isNewFrom: number, to: End): void {
    for (const { marks } of this.#triggers) {
      const [mark] = marks;
      if (mark?.to !== to) continue;
      const first = Math.max(0, isNewFrom - mark.bytes.length + 1);
      if (bytes.includes(mark.bytes, first)) marks.shift();
    }
    const due = this.#triggers.filter(({ marks }) => marks.length === 0);
    this.#triggers = this.#triggers.filter(({ marks }) => marks.length > 0);
    for (const { act } of due) act();
  }

  async #close(): Promise<void> {
    const closed = once(this.#server, "close");
    this.#server.close();
    for (const { from } of this.#lanes) from.destroy();
    await closed;
  }
}

interface LaneParts {
  readonly from: Socket;
  readonly target: Socket;
  /** Whose end `target` is. */
  readonly to: End;
  readonly mode: () => Mode;
  /** Told of what arrives before it is passed on; what stands before `isNewFrom` came earlier. */
  readonly seen: (bytes: Buffer, isNewFrom: number) => void;
}

/** One direction of one connection. Invariant: bytes, end and close are passed on in their order, or dropped. */
class Lane {
  readonly from: Socket;
  readonly to: End;
  /** The other end is gone: nothing is passed on any more. */
  isDead = false;
  readonly #parts: LaneParts;
  readonly #queue: { readonly piece: Buffer | "end" | "close"; readonly cameMs: number }[] = [];
  #isPumping = false;
  /** The last bytes that came, for marks that come in two pieces. */
  #tail = Buffer.alloc(0);

  constructor(parts: LaneParts) {
    this.#parts = parts;
    this.from = parts.from;
    this.to = parts.to;
    this.from
      .on("data", (bytes: Buffer) => {
        const window = Buffer.concat([this.#tail, bytes]);
        this.#tail = Buffer.from(window.subarray(-64));
        parts.seen(window, window.length - bytes.length);
        this.#push(bytes);
      })
      .on("end", () => {
        this.#push("end");
      })
      .on("error", ignoreReset)
      .on("close", () => {
        this.#push("close");
      });
  }

  /** A unix socket can't be reset: it is closed. */
  reset(): void {
    if (this.from.remoteAddress === undefined) this.from.destroy();
    else this.from.resetAndDestroy();
  }

  modeChanged(): void {
    if (this.#parts.mode() === "stalled") this.from.pause();
    else {
      this.from.resume();
      void this.#pump();
    }
  }

  get #isLost(): boolean {
    return this.isDead || this.#parts.mode() === "black-hole";
  }

  #push(piece: Buffer | "end" | "close"): void {
    if (this.#isLost) return;
    this.#queue.push({ piece, cameMs: performance.now() });
    void this.#pump();
  }

  async #pump(): Promise<void> {
    if (this.#isPumping) return;
    this.#isPumping = true;
    while (this.#parts.mode() !== "stalled") {
      const next = this.#queue.shift();
      if (next === undefined) break;
      const { piece, cameMs } = next;
      if (this.#parts.mode() === "slow") await sleep(Math.max(0, cameMs + DELAY_MS - performance.now()));
      if (this.#isLost) continue;
      if (piece === "end") this.#parts.target.end();
      else if (piece === "close") this.#parts.target.destroy();
      else await this.#deliver(piece);
    }
    this.#isPumping = false;
  }

  async #deliver(bytes: Buffer): Promise<void> {
    const { target, mode } = this.#parts;
    let at = 0;
    for (; mode() === "trickling" && at < bytes.length; at += TRICKLE_BYTES) {
      target.write(bytes.subarray(at, at + TRICKLE_BYTES));
      await turn();
    }
    if (target.write(bytes.subarray(at)) || target.destroyed) return;
    this.from.pause();
    await new Promise((resolve) => target.once("drain", resolve).once("close", resolve));
    if (mode() !== "stalled") this.from.resume();
  }
}

/** "close" follows, and is what counts. */
function ignoreReset(): void {
  // A reset is what this proxy is for.
}

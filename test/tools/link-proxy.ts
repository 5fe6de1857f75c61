/** A TCP link between two nodes that can fail in the ways a network does. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

import { parseAddress, socketOptions } from "../../src/net/address.js";
import type { Workspace } from "./workspace.js";

/**
 * `up`: passes everything. `stalled`: takes nothing more, as a peer whose buffers are full; what was underway
 * arrives when it is up again. `black-hole`: takes everything and delivers nothing, as a router that lost its way.
 */
type Mode = "up" | "stalled" | "black-hole";

export class LinkProxy {
  readonly #server: Server;
  readonly #target: string;
  readonly #sockets = new Set<Socket>();
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
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  stall(): void {
    this.#mode = "stalled";
    for (const socket of this.#sockets) socket.pause();
  }

  blackHole(): void {
    this.#mode = "black-hole";
  }

  /** The link works again. Connections that lost bytes meanwhile are reset, for they would go on in the middle. */
  heal(): void {
    if (this.#mode === "black-hole") this.reset();
    this.#mode = "up";
    this.#isCut = false;
    for (const socket of this.#sockets) socket.resume();
  }

  #accept(near: Socket): void {
    if (this.#isCut) {
      near.on("error", ignoreReset).resetAndDestroy();
      return;
    }
    const far = connect(socketOptions(parseAddress(this.#target)));
    this.#pass(near, far);
    this.#pass(far, near);
    if (this.#mode === "stalled") near.pause();
  }

  #pass(from: Socket, to: Socket): void {
    this.#sockets.add(from);
    from
      .on("data", (bytes: Buffer) => {
        if (this.#mode === "black-hole" || to.write(bytes)) return;
        from.pause();
        to.once("drain", () => {
          if (this.#mode !== "stalled") from.resume();
        });
      })
      .on("end", () => {
        if (this.#mode === "up") to.end();
      })
      .on("error", ignoreReset)
      .on("close", () => {
        this.#sockets.delete(from);
        if (this.#mode === "up") to.destroy();
      });
  }

  async #close(): Promise<void> {
    const closed = once(this.#server, "close");
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}

/** "close" follows, and is what counts. */
function ignoreReset(): void {
  // A reset is what this proxy is for.
}

/**
 * The hostile clients of `npm run bench:hostile`, in a process of their own: the one that behaves must not wait for them.
 *
 * Arguments: the path of the server's socket, how many clients, and the names of their attacks. On SIGTERM it prints an
 * AttackReport and ends.
 */
import type { Socket } from "node:net";
import { connect } from "node:net";

import { GREETING_BYTES } from "../src/nbd/wire/handshake.js";
import { OPTION_REPLY_HEADER_BYTES } from "../src/nbd/wire/option-reply.js";
import type { Attack } from "./attacks.js";
import { ATTACKS } from "./attacks.js";

export interface AttackReport {
  /** Made in all, also those of clients that were thrown out, or left, and came back. */
  readonly connections: number;
  /** Bytes that the kernel has taken for the server, and that came from it. */
  readonly sentBytes: number;
  readonly receivedBytes: number;
  /** Of each attack. */
  readonly open: readonly (readonly [name: string, count: number])[];
}

/** Between two bytes of the slow ones, and until one that was thrown out comes back. */
const DRIP_MS = 500;

/** From the server, until it waits for a TLS handshake. */
const SECURING_BYTES = GREETING_BYTES + OPTION_REPLY_HEADER_BYTES;

/** Comes back when it is thrown out. */
class HostileClient {
  readonly attack: Attack;
  readonly #path: string;
  #socket: Socket;
  #dripped = 0;
  connections = 1;
  sentBytes = 0;
  receivedBytes = 0;

  constructor(path: string, attack: Attack) {
    this.#path = path;
    this.attack = attack;
    this.#socket = this.#open();
  }

  get isOpen(): boolean {
    return !this.#socket.destroyed;
  }

  drip(): void {
    const { drip } = this.attack;
    if (!this.isOpen) this.#comeBack();
    else if (drip.length > 0 && this.#socket.writableLength === 0) {
      this.#socket.write(drip.subarray(this.#dripped, this.#dripped + 1));
      this.#dripped = (this.#dripped + 1) % drip.length;
    }
  }

  #comeBack(): void {
    this.connections++;
    this.#dripped = 0;
    this.#socket = this.#open();
  }

  #open(): Socket {
    const { opening, insteadOfTls, flood, reads, leavesAfterMs } = this.attack;
    const socket = connect(this.#path);
    // To be thrown out is what these are here for.
    socket.on("error", () => undefined);
    socket.on("close", () => {
      this.sentBytes += socket.bytesWritten;
      this.receivedBytes += socket.bytesRead;
    });
    if (reads) socket.resume();
    if (opening.length > 0) socket.write(opening);
    if (insteadOfTls !== null) {
      socket.on("data", () => {
        if (socket.bytesRead === SECURING_BYTES) socket.write(insteadOfTls);
      });
    }
    if (flood.length > 0) {
      const send = (): void => {
        while (!socket.destroyed && socket.write(flood));
      };
      socket.on("drain", send);
      send();
    }
    if (leavesAfterMs !== null) {
      socket.on("connect", () => {
        setTimeout(() => {
          socket.destroy();
          this.#comeBack();
        }, leavesAfterMs);
      });
    }
    return socket;
  }

  /** At the end. */
  leave(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#socket.closed) resolve();
      else this.#socket.once("close", resolve).destroy();
    });
  }
}

async function report(clients: readonly HostileClient[]): Promise<AttackReport> {
  const open = ATTACKS.map(({ name }): [string, number] => [
    name,
    clients.filter((client) => client.attack.name === name && client.isOpen).length,
  ]).filter(([name]) => clients.some((client) => client.attack.name === name));
  const sum = (of: (client: HostileClient) => number): number =>
    clients.reduce((total, client) => total + of(client), 0);
  const connections = sum((client) => client.connections);
  await Promise.all(clients.map((client) => client.leave()));
  return {
    connections,
    open,
    sentBytes: sum((client) => client.sentBytes),
    receivedBytes: sum((client) => client.receivedBytes),
  };
}

const [path = "", count = "0", ...names] = process.argv.slice(2);
const attacks = ATTACKS.filter(({ name }) => names.includes(name));
const clients = Array.from({ length: Number(count) }, (_, index) => {
  const attack = attacks[index % attacks.length];
  if (attack === undefined) throw new Error(`no attack is called ${names.join(" or ")}`);
  return new HostileClient(path, attack);
});
const dripping = setInterval(() => {
  for (const client of clients) client.drip();
}, DRIP_MS);
process.once("SIGTERM", () => {
  clearInterval(dripping);
  void report(clients).then((result) => {
    process.stdout.write(JSON.stringify(result), () => process.exit());
  });
});

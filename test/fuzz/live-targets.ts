/** Live peers: a server in this process, a repl-primary in one of its own, and our client before a server that lies. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import type { Socket } from "node:net";
import { createServer } from "node:net";

import { ReplError } from "../../src/errors.js";
import { Flag } from "../../src/block/device.js";
import type { Address } from "../../src/net/address.js";
import { connectNbd } from "../../src/nbd/client/connect.js";
import type { NbdDevice } from "../../src/nbd/client/device.js";
import { Command } from "../../src/nbd/wire/constants.js";
import { MemoryDevice } from "../tools/memory-device.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { NodeProcess } from "../tools/node-process.js";
import { RawNbdClient } from "../tools/raw-nbd-client.js";
import type { Random } from "../tools/seed.js";
import { waitFor } from "../tools/wait-for.js";
import type { Workspace } from "../tools/workspace.js";
import { clientSession } from "./client-streams.js";
import { mutate, pieces } from "./mutate.js";
import { someRequest } from "./parser-targets.js";
import { serverHandshake, serverReplies } from "./server-streams.js";
import type { ReplyStyle } from "./server-streams.js";

/** A live peer that can be attacked again and again. */
export interface LiveTarget {
  attack(random: Random): Promise<void>;
  /** Looks whether it is as it was, and ends it. */
  close(): Promise<void>;
}

const SIZE_BYTES = 8 * 1024 * 1024;
const SHAPE = { exportName: "disk0", sizeBytes: SIZE_BYTES, longestBytes: 40_000 };
/** A server that has not answered by then never will. */
const ANSWER_LIMIT_MS = 10_000;
/** Far above what a session of these may cost, far below what its lengths announce. */
const MEMORY_LIMIT_BYTES = 400 * 1024 * 1024;

export async function inProcessServer(): Promise<LiveTarget> {
  const harness = await startNbdServer({ handshakeTimeoutMs: 1000 });
  harness.add("disk0", new MemoryDevice(SIZE_BYTES));
  const attack = await attackerOf(harness.address);
  return {
    async attack(random) {
      await attack(random);
      const { arrayBuffers } = process.memoryUsage();
      assert(arrayBuffers < MEMORY_LIMIT_BYTES, `${arrayBuffers} bytes of buffers are held`);
    },
    async close() {
      await harness.close();
      await waitFor(
        "all connections to be gone",
        () => harness.server.connections(),
        (left) => left.length === 0,
      );
      const internal = harness.log.filter(({ code }) => code === "internal-error");
      assert.deepEqual(internal, [], "the server met a mistake of ours");
      for (const { clean, unansweredWrites, writes } of harness.summaries) {
        assert(unansweredWrites <= (clean ? 0 : writes), "a write is miscounted");
      }
    },
  };
}

export async function primaryProcess(workspace: Workspace): Promise<LiveTarget> {
  const path = workspace.path("guest.sock");
  const node = await NodeProcess.start(workspace, "primary", [
    ...["--disk", `disk0=${workspace.path("disk.img")}`, "--size", `${SIZE_BYTES}`],
    ...["--listen", `unix:${path}`],
  ]);
  const attack = await attackerOf({ kind: "unix", path });
  return {
    async attack(random) {
      await attack(random);
      const status = await readFile(`/proc/${node.process.pid}/status`, "utf8");
      const residentKib = Number(/^VmRSS:\s*(\d+)/m.exec(status)?.[1]);
      assert(residentKib * 1024 < MEMORY_LIMIT_BYTES, `repl-primary holds ${residentKib} KiB`);
    },
    async close() {
      const worst = node.log.filter(({ level, code }) => level > 40 || code === "internal-error");
      assert.deepEqual(worst, [], "repl-primary logged errors");
      const { code } = await node.process.terminate();
      assert.equal(code, 0, "repl-primary ended badly");
    },
  };
}

/** Sends damaged sessions; after each of them a client that behaves is served as ever. */
async function attackerOf(address: Address): Promise<(random: Random) => Promise<void>> {
  const witness = await RawNbdClient.transmitting(address, "disk0");
  let cookie = 0;
  return async (random) => {
    const stream = mutate(clientSession(SHAPE, random), random);
    const client = await RawNbdClient.connect(address);
    for (const piece of pieces(stream, random)) {
      client.send(piece);
      if (random.below(8) === 0) await new Promise(setImmediate);
    }
    if (random.below(2) === 0) client.destroy();
    else {
      client.socket.end();
      await within("the end of a damaged session", client.readToEnd());
      client.destroy();
    }
    cookie = (cookie + 1) % 2 ** 31;
    const reply = await within(
      "a well-behaved client",
      witness.ask(Command.Read, { cookie, lengthBytes: 512 }),
    );
    assert.deepEqual([reply.cookie, reply.errorNumber], [cookie, 0]);
  };
}

/** Our client before a server whose bytes are damaged: each request settles, each failure is one of ours. */
export async function deceivedClient(workspace: Workspace): Promise<LiveTarget> {
  let script: (socket: Socket) => Promise<void> = () => Promise.resolve();
  const address: Address = { kind: "unix", path: workspace.path("liar.sock") };
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.resume();
    void script(socket);
  });
  server.listen(address.path);
  await once(server, "listening");
  return {
    async attack(random) {
      const style = random.oneOf<ReplyStyle>(["simple", "structured", "extended"]);
      const asked = Array.from({ length: 1 + random.below(6) }, (_, index) => someRequest(index, random));
      const damagesHandshake = random.below(3) === 0;
      const handshake = serverHandshake(style, SIZE_BYTES);
      const replies = serverReplies(style, asked, random);
      const parts = [
        damagesHandshake ? mutate(handshake, random) : handshake,
        ...pieces(damagesHandshake ? replies : mutate(replies, random), random),
      ];
      script = async (socket) => {
        for (const part of parts) {
          socket.write(part);
          await new Promise(setImmediate);
        }
        socket.end();
      };
      await within("the client", converse(address, asked));
    },
    async close() {
      server.close();
      await once(server, "close");
    },
  };
}

async function converse(address: Address, asked: readonly ReturnType<typeof someRequest>[]): Promise<void> {
  let device: NbdDevice;
  try {
    device = await connectNbd({ address, exportName: "disk0", connectTimeoutMs: 5000 });
  } catch (error) {
    requireOurs(error);
    return;
  }
  const { info } = device;
  const results = await Promise.allSettled(
    asked
      .filter(({ offset, lengthBytes }) => offset + lengthBytes <= info.sizeBytes)
      .map(({ type, offset, lengthBytes }): Promise<unknown> => {
        if (type === Command.Read) return device.read(offset, Buffer.alloc(lengthBytes));
        if (type === Command.Write) return device.write(offset, Buffer.alloc(lengthBytes), Flag.None);
        if (type === Command.Trim) return device.trim(offset, lengthBytes, Flag.None);
        if (type === Command.BlockStatus) return device.extents(offset, lengthBytes, 10);
        return device.flush();
      }),
  );
  for (const result of results) if (result.status === "rejected") requireOurs(result.reason);
  await device.close();
}

function requireOurs(error: unknown): void {
  if (!(error instanceof ReplError)) throw error;
}

async function within<T>(what: string, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const tooLate = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`${what} is still waited for after ${ANSWER_LIMIT_MS} ms`));
    }, ANSWER_LIMIT_MS);
  });
  try {
    return await Promise.race([work, tooLate]);
  } finally {
    clearTimeout(timer);
  }
}

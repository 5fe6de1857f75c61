/** NBD servers that others wrote, each on a unix socket (qemu-nbd, nbdkit, nbd-server) or a TCP port (nbdkit). */
import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { LinkError } from "../../src/errors.js";
import { socketOptions } from "../../src/net/address.js";
import type { Address } from "../../src/net/address.js";
import { freezeProcess } from "./freeze-process.js";

const READY_POLL_MS = 10;
/** A server that isn't there by then never will be. */
const READY_LIMIT_MS = 15_000;

export class NbdPeer {
  readonly address: Address;
  readonly directory: string;
  readonly #child: ChildProcess;
  #errors = "";

  private constructor(address: Address, directory: string, child: ChildProcess) {
    this.address = address;
    this.directory = directory;
    this.#child = child;
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#errors += text;
    });
  }

  /** A directory for a peer's socket and images; stop() removes it. */
  static makeDirectory(): Promise<string> {
    return mkdtemp(join(tmpdir(), "nbd-peer-"));
  }

  /** Starts a server in the foreground and waits until it is `ready`, by default until it takes connections. */
  static async start(
    directory: string,
    address: Address,
    command: readonly [program: string, ...args: string[]],
    ready: (address: Address) => Promise<boolean> = takesConnections,
  ): Promise<NbdPeer> {
    const [program, ...args] = command;
    const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"] });
    const peer = new NbdPeer(address, directory, child);
    await once(child, "spawn");
    try {
      await peer.#wait(ready);
    } catch (error) {
      await peer.stop();
      throw error;
    }
    return peer;
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Stops the process: connections are taken by the kernel, and nobody answers. */
  async freeze(): Promise<void> {
    const { pid } = this.#child;
    if (pid !== undefined) await freezeProcess(pid);
  }

  /** Resolves when the process has ended. */
  async ended(): Promise<void> {
    if (this.#isRunning()) await once(this.#child, "exit");
  }

  /** Ends the server, also one that was stopped by SIGSTOP. */
  async stop(): Promise<void> {
    if (this.#isRunning()) {
      const exited = once(this.#child, "exit");
      this.signal("SIGKILL");
      await exited;
    }
    await rm(this.directory, { recursive: true });
  }

  #isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  async #wait(ready: (address: Address) => Promise<boolean>): Promise<void> {
    const deadlineMs = performance.now() + READY_LIMIT_MS;
    while (!(await ready(this.address))) {
      if (!this.#isRunning() || performance.now() > deadlineMs) {
        throw new Error(`${this.#child.spawnargs.join(" ")} does not get ready: ${this.#errors}`);
      }
      await new Promise((resolve) => setTimeout(resolve, READY_POLL_MS));
    }
  }
}

/** Serves `image`, of the given format, as the export "disk". */
export function startQemuNbd(
  directory: string,
  image: string,
  format: "raw" | "qcow2",
  ...more: readonly string[]
): Promise<NbdPeer> {
  const path = join(directory, "sock");
  const args = ["-t", "-e", "16", "-k", path, "-x", "disk", "-f", format, "--discard=unmap", ...more, image];
  return NbdPeer.start(directory, { kind: "unix", path }, ["qemu-nbd", ...args]);
}

/** `args` are filters, plugin and parameters. */
export async function startNbdkit(...args: string[]): Promise<NbdPeer> {
  const directory = await NbdPeer.makeDirectory();
  const path = join(directory, "sock");
  return NbdPeer.start(directory, { kind: "unix", path }, ["nbdkit", "-f", "-U", path, ...args]);
}

export async function startNbdkitOnTcp(...args: string[]): Promise<NbdPeer> {
  const address = { kind: "tcp", host: "127.0.0.1", port: await freePort() } as const;
  const directory = await NbdPeer.makeDirectory();
  return NbdPeer.start(directory, address, [
    "nbdkit",
    "-f",
    "-i",
    address.host,
    "-p",
    String(address.port),
    ...args,
  ]);
}

/**
 * The server of the NBD project itself, which has no structured replies and no fast zeroes, with the export "disk".
 * In the foreground it serves one client and ends; connect patiently().
 */
export async function startReferenceServer(directory: string, image: string): Promise<NbdPeer> {
  const path = join(directory, "sock");
  const configuration = join(directory, "config");
  const generic = ["[generic]", `unixsock = ${path}`, `port = ${await freePort()}`, "allowlist = true"];
  const disk = ["[disk]", `exportname = ${image}`, "flush = true", "fua = true", "trim = true"];
  await writeFile(configuration, [...generic, ...disk, ""].join("\n"));
  const command = ["nbd-server", "-d", "-C", configuration] as const;
  return NbdPeer.start(directory, { kind: "unix", path }, command, () => Promise.resolve(existsSync(path)));
}

/** For a server whose socket may be there before it listens, and that must not be asked in vain. */
export async function patiently<T>(attempt: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof LinkError) || error.code !== "connect-failed") throw error;
    }
  }
}

async function takesConnections(address: Address): Promise<boolean> {
  const socket = connect(socketOptions(address));
  const taken = await new Promise<boolean>((resolve) => {
    socket.once("connect", () => {
      resolve(true);
    });
    socket.once("error", () => {
      resolve(false);
    });
  });
  socket.destroy();
  return taken;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const bound = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (bound === null || typeof bound === "string") throw new Error("no port is free");
  return bound.port;
}

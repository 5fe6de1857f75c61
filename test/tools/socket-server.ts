/** Servers that others wrote, on a unix socket of the test's directory. */
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";

import type { TestProcess } from "./process.js";
import { waitFor } from "./wait-for.js";
import type { Workspace } from "./workspace.js";

/** __SO_ACCEPTCON of the kernel's include/linux/net.h, as /proc/net/unix shows it. */
const LISTENING = "00010000";

/** Starts a program that listens on `path`, and waits until it takes connections. */
export async function serveOn(
  workspace: Workspace,
  path: string,
  program: string,
  args: readonly string[],
): Promise<TestProcess> {
  const server = await workspace.start(program, args);
  await waitFor(
    `${program} to listen`,
    async () => !server.isRunning || (await isListening(path)),
    (isSettled) => isSettled,
  );
  if (!server.isRunning) throw new Error(`${server.name} did not start: ${(await server.ended()).stderr}`);
  return server;
}

/** nbdkit with these filters, plugin and parameters. */
export function startNbdkit(
  workspace: Workspace,
  path: string,
  ...args: readonly string[]
): Promise<TestProcess> {
  return serveOn(workspace, path, "nbdkit", ["-f", "-U", path, ...args]);
}

/** A TCP port that nobody listens on now, for servers that can't choose one themselves. */
export async function freePort(): Promise<number> {
  const server = createServer();
  server.listen({ host: "127.0.0.1", port: 0 });
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

/** Seen without connecting, for some servers serve one client and end. */
async function isListening(path: string): Promise<boolean> {
  const sockets = (await readFile("/proc/net/unix", "utf8")).split("\n").map((line) => line.split(/\s+/));
  return sockets.some((fields) => fields.at(-1) === path && fields[3] === LISTENING);
}

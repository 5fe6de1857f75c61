/** Servers that others wrote, on a unix socket of the test's directory. */
import { once } from "node:events";
import { connect } from "node:net";

import type { TestProcess } from "./process.js";
import { waitFor } from "./wait-for.js";
import type { Workspace } from "./workspace.js";

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
    async () => !server.isRunning || (await takesConnections(path)),
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

async function takesConnections(path: string): Promise<boolean> {
  const socket = connect({ path });
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

/** Tells systemd how far the node is (Type=notify): sd_notify(3). */
import { describeError } from "../errors.js";
import { libc } from "./libc.js";

/** READY: it serves. STOPPING: it has been told to end. */
export type ServiceState = "READY=1" | "STOPPING=1";

/**
 * To be told where NOTIFY_SOCKET says; nobody is where there is none.
 * @param warn systemd waits in vain, and will end the node
 */
export function notifyServiceManager(
  state: ServiceState,
  environment: Readonly<Record<string, string | undefined>>,
  warn: (message: string) => void,
): void {
  const { NOTIFY_SOCKET: path } = environment;
  if (path === undefined || path === "") return;
  try {
    if (!/^[/@]/.test(path)) throw new Error("not a path, nor an abstract socket");
    const system = libc();
    if (system === null) throw new Error("koffi can't be loaded");
    system.sendDatagram(path, `${state}\n`);
  } catch (error) {
    warn(`systemd can't be told ${state} (NOTIFY_SOCKET "${path}"): ${describeError(error)}: use Type=exec`);
  }
}

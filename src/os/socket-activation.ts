/**
 * Listening sockets that systemd opened for this process: sd_listen_fds(3).
 *
 * LISTEN_FDS of them begin at descriptor 3, if LISTEN_PID is this process; LISTEN_FDNAMES has their names.
 */
import { ConfigError } from "../errors.js";

export interface InheritedSocket {
  readonly fd: number;
  /** FileDescriptorName= of the socket unit; systemd's default is the unit's name. */
  readonly name: string;
}

const FIRST_FD = 3;
/** More than anybody opens; the number comes from the environment. */
const MAXIMUM_SOCKETS = 64;

/** None if there are none for this process. @throws ConfigError if the environment contradicts itself */
export function inheritedSockets(
  environment: Readonly<Record<string, string | undefined>>,
  pid: number,
): InheritedSocket[] {
  const { LISTEN_PID: forPid, LISTEN_FDS: count, LISTEN_FDNAMES: names } = environment;
  if (forPid === undefined || count === undefined || Number(forPid) !== pid) return [];
  const sockets = /^\d{1,5}$/.test(count) ? Number(count) : Infinity;
  if (sockets > MAXIMUM_SOCKETS) {
    throw new ConfigError(
      "bad-activation",
      `LISTEN_FDS: "${count}" is not a number up to ${MAXIMUM_SOCKETS}`,
    );
  }
  const list = names === undefined ? [] : names.split(":");
  if (names !== undefined && list.length !== sockets) {
    throw new ConfigError("bad-activation", `LISTEN_FDNAMES: "${names}" does not name ${sockets} sockets`);
  }
  return Array.from({ length: sockets }, (_, i) => ({ fd: FIRST_FD + i, name: list[i] ?? "unknown" }));
}

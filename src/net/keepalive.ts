/**
 * A peer whose host vanished, or a path that forgot the connection, is found out by the kernel: else an idle connection would count
 * among a server's clients for the kernel's two hours, and a dead one would be noticed when it is needed. The probes also keep what
 * is on the path from forgetting the connection.
 */
import { isIP, type Socket } from "node:net";

import { setOption } from "./socket-option.js";

/** For connections that are built anew when they are lost: 30 s of silence, then, as libuv has it, ten probes, one a second. */
export const KEEPALIVE = { keepAlive: true, keepAliveInitialDelay: 30_000 } as const;

/** So long does that take. */
const SILENCE_MS = 40_000;

const PATIENT_INTERVAL_S = 30;
const PATIENT_PROBES = 30;
const PATIENT_MS = PATIENT_INTERVAL_S * PATIENT_PROBES * 1000;

/**
 * For a connection with KEEPALIVE over which a server sends of itself, as QMP's events are: while anything is under way the kernel sends
 * no probes, and a host that vanished would count among the clients for a quarter of an hour (tcp_retries2) all the same.
 */
export function beImpatient(socket: Socket): void {
  setOption(socket, (system, fd) => {
    system.setUserTimeout(fd, SILENCE_MS);
  });
}

/**
 * For a client that a lost connection may cost its disk, as most guests' do: its host may be paused, or a path dead while a network
 * converges. It has a quarter of an hour, about as long as the kernel gives a connection that has data under way (tcp_retries2).
 */
export function bePatient(socket: Socket): void {
  if (isIP(socket.remoteAddress ?? "") === 0) return;
  const isSet = setOption(socket, (system, fd) => {
    system.setKeepaliveProbes(fd, PATIENT_INTERVAL_S, PATIENT_PROBES);
  });
  // Seldom, then: a path is unlikely to be dead just when all its probes are sent.
  if (!isSet) socket.setKeepAlive(true, PATIENT_MS);
}

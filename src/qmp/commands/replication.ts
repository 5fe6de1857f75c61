/**
 * QEMU's own replication commands, with its arguments, answers and error texts (qapi/migration.json), so that any
 * manager written for QEMU's COLO drives a node of ours.
 */
import { z } from "zod";
import { NegotiationError, StateError } from "../../errors.js";
import type { Mode } from "../../replication/stage.js";
import { type QmpCommand, qmpCommand } from "../command.js";

/** QEMU's replication_start_all() and its siblings. */
export interface ReplicationGroup {
  readonly mode: Mode;
  start(mode: Mode): Promise<void>;
  stop(isFailover: boolean): Promise<void>;
  checkpoint(): Promise<void>;
  /** @throws StateError with QEMU's texts */
  getError(): void;
  /** Whether replication is running, or a failover has failed, which can be tried again. */
  readonly isActive: boolean;
}

const none = z.strictObject({});

/**
 * @param current what the node is to a manager now: one that is promoted becomes another
 * @param emit sends an event to every QMP client
 */
export function replicationCommands(
  current: () => ReplicationGroup,
  emit: (event: string, data: object) => void,
): QmpCommand[] {
  let isExiting = false;
  /** As what the node was told of a lost heartbeat last; null: never. */
  let exited: Mode | null = null;
  return [
    qmpCommand({
      name: "xen-set-replication",
      arguments: z.strictObject({
        enable: z.boolean(),
        primary: z.boolean(),
        failover: z.boolean().optional(),
      }),
      run: async ({ enable, primary, failover }) => {
        if (enable && failover !== undefined) {
          throw new NegotiationError("bad-argument", "Parameter 'failover' is only for stopping replication");
        }
        if (enable) await current().start(primary ? "primary" : "secondary");
        else await current().stop(failover === true);
        return {};
      },
    }),
    qmpCommand({
      name: "query-xen-replication-status",
      arguments: none,
      run: () => {
        try {
          current().getError();
          return Promise.resolve({ error: false });
        } catch (error) {
          if (!(error instanceof StateError)) throw error;
          return Promise.resolve({ error: true, desc: error.message });
        }
      },
    }),
    qmpCommand({
      name: "xen-colo-do-checkpoint",
      arguments: none,
      run: async () => {
        await current().checkpoint();
        return {};
      },
    }),
    qmpCommand({
      name: "x-colo-lost-heartbeat",
      arguments: none,
      run: async () => {
        const group = current();
        if (!group.isActive) throw new StateError("not-running", "The feature 'colo' is not enabled");
        // Each end is told once, whoever else asks for it meanwhile.
        if (isExiting) throw new StateError("already-exiting", "COLO failover is already actived");
        const { mode } = group;
        isExiting = true;
        try {
          await group.stop(true);
        } finally {
          isExiting = false;
        }
        exited = mode;
        emit("COLO_EXIT", { mode, reason: "request" });
        return {};
      },
    }),
    qmpCommand({
      name: "query-colo-status",
      arguments: none,
      run: () => {
        const { isActive, mode } = current();
        const last = isActive ? null : exited;
        return Promise.resolve({
          mode: isActive ? mode : "none",
          "last-mode": last ?? "none",
          reason: last === null ? "none" : "request",
        });
      },
    }),
  ];
}

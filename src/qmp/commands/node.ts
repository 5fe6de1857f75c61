/** Commands about the node as a whole. */
import { z } from "zod";
import type { NodeStatus } from "../../status.js";
import { type QmpCommand, qmpCommand } from "../command.js";

/** The last word of a node that ends: `reason` is why its exit code is 1, or null. */
export const ENDED_EVENT = "X_REPL_ENDED";

const none = z.strictObject({});

export interface NodeCommandsParts {
  readonly status: () => NodeStatus;
  /** Begins an orderly shutdown. */
  readonly quit: () => void;
}

export function nodeCommands({ status, quit }: NodeCommandsParts): QmpCommand[] {
  return [
    qmpCommand({
      name: "query-status",
      arguments: none,
      run: () => Promise.resolve({ status: "running", singlestep: false, running: true }),
    }),
    qmpCommand({
      name: "quit",
      arguments: none,
      run: () => {
        quit();
        return Promise.resolve({});
      },
    }),
    qmpCommand({ name: "x-repl-status", arguments: none, run: () => Promise.resolve(status()) }),
  ];
}

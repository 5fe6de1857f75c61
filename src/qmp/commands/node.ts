/** Commands about the node as a whole. */
import { z } from "zod";
import type { NodeStatus } from "../../status.js";
import { type QmpCommand, qmpCommand } from "../command.js";

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

/** What can destroy data is asked for on a terminal, and needs --yes elsewhere. */
import { ConfigError, ReplError } from "../errors.js";
import type { Terminal } from "./terminal.js";

/** @param what can be lost, for the error @throws ConfigError if there is nobody to ask */
export function requireTerminal(terminal: Terminal, what: string): void {
  if (terminal.interactive) return;
  throw new ConfigError("needs-yes", `${what}: without a terminal to ask on, it needs --yes`);
}

/** @throws ConfigError if there is nobody to ask, ReplError if the answer is not yes */
export async function confirm(terminal: Terminal, what: string, question: string): Promise<void> {
  requireTerminal(terminal, what);
  const answer = await terminal.ask(`${question} Type "yes" to go on: `);
  if (answer.trim() !== "yes") throw new ReplError("not-confirmed", "it was not confirmed, nothing was done");
}

/** How a program refuses: one line on standard error, nothing on standard output, and an exit code with a meaning. */
import { expect } from "chai";

import type { Outcome } from "./process.js";

/** docs/cli.md */
export const Exit = { Done: 0, Failed: 1, Usage: 2, WrongState: 3, Unreachable: 4 } as const;

/** What it says to its operator; the log's lines are JSON. */
export function complaint(stderr: string): string {
  return stderr
    .split("\n")
    .filter((line) => !line.startsWith("{"))
    .join("\n");
}

/** @param message what the line has to say, besides the program's name in front */
export function expectRefusal(outcome: Outcome, code: number, message: string | RegExp): void {
  const said = complaint(outcome.stderr);
  expect(said).to.match(/^repl-(primary|secondary): [^\n]+\n$/, "one line, and no stack");
  if (typeof message === "string") expect(said).to.include(message);
  else expect(said).to.match(message);
  expect([outcome.code, outcome.signal, outcome.stdout]).to.deep.equal([code, null, ""]);
}

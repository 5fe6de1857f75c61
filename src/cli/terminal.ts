/** Where the command line writes and asks; the real one, and the seam for tests. */
import { createInterface } from "node:readline/promises";
import { describeError } from "../errors.js";

export interface Terminal {
  /** Whether a person can be asked. */
  readonly interactive: boolean;
  /** Whether standard output shows colours and can be redrawn. */
  readonly decorated: boolean;
  readonly columns: number;
  /** Writes a line, or several, to standard output. */
  print(text: string): void;
  /** Writes a line to standard error. */
  complain(text: string): void;
  /** Erases the screen; only where `decorated`. */
  clear(): void;
  /** Asks on standard error; the answer is empty at the end of input. */
  ask(question: string): Promise<string>;
}

const DEFAULT_COLUMNS = 100;
const MAXIMUM_COLUMNS = 120;

export function processTerminal(): Terminal {
  const { stdin, stdout, stderr } = process;
  // A reader that has seen enough (`| head`) is no failure.
  stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(0);
    stderr.write(`standard output can't be written: ${describeError(error)}\n`, () => process.exit(1));
  });
  // What can't be told on it is told by the exit code.
  stderr.on("error", () => undefined);
  return {
    interactive: stdin.isTTY && stderr.isTTY,
    decorated: stdout.isTTY && process.env["NO_COLOR"] === undefined,
    columns: Math.min(stdout.isTTY ? stdout.columns : DEFAULT_COLUMNS, MAXIMUM_COLUMNS),
    print: (text) => {
      stdout.write(`${text}\n`);
    },
    complain: (text) => {
      stderr.write(`${text}\n`);
    },
    clear: () => {
      stdout.write("\x1b[H\x1b[2J");
    },
    ask: async (question) => {
      const lines = createInterface({ input: stdin, output: stderr });
      try {
        const ended = new Promise<string>((resolve) => {
          lines.once("close", () => {
            stderr.write("\n");
            resolve("");
          });
        });
        return await Promise.race([lines.question(question), ended]);
      } finally {
        lines.removeAllListeners("close");
        lines.close();
      }
    },
  };
}

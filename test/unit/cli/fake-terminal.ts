/** A terminal that remembers what was written to it, and answers what it was told to. */
import type { Terminal } from "../../../src/cli/terminal.js";

export class FakeTerminal implements Terminal {
  readonly columns = 100;
  readonly interactive: boolean;
  readonly decorated = false;
  readonly printed: string[] = [];
  readonly complaints: string[] = [];
  readonly questions: string[] = [];
  readonly #answer: string;

  /** With an answer it is interactive. */
  constructor(answer: string | null = null) {
    this.interactive = answer !== null;
    this.#answer = answer ?? "";
  }

  print(text: string): void {
    this.printed.push(text);
  }

  complain(text: string): void {
    this.complaints.push(text);
  }

  clear(): void {
    this.printed.push("(cleared)");
  }

  ask(question: string): Promise<string> {
    this.questions.push(question);
    return Promise.resolve(this.#answer);
  }
}

/**
 * Everything that a benchmark starts and leaves on disk, so that all of it goes away however the benchmark ends.
 *
 * Invariant: a workspace is in `#open` from before its first process starts until its last one has ended.
 */
import { Workspace } from "../test/tools/workspace.js";

export class Lab {
  /** With the end of each, once it has begun. */
  readonly #open = new Map<Workspace, Promise<void> | null>();
  #isClosing = false;

  /** @throws once the lab closes */
  async workspace(): Promise<Workspace> {
    this.#refuseIfClosing();
    const workspace = new Workspace();
    await workspace.open();
    this.#open.set(workspace, null);
    // Closed meanwhile, it may have gone through what was open already.
    if (this.#isClosing) await this.discard(workspace);
    this.#refuseIfClosing();
    return workspace;
  }

  /** Ends the processes of a workspace and removes its files; once, whoever else asks for it meanwhile. */
  async discard(workspace: Workspace): Promise<void> {
    const ending = this.#open.get(workspace);
    if (ending === undefined) return;
    const ended = ending ?? workspace.close();
    this.#open.set(workspace, ended);
    try {
      await ended;
    } finally {
      this.#open.delete(workspace);
    }
  }

  /** Discards all there is; from now on there is nothing new. */
  async close(): Promise<void> {
    this.#isClosing = true;
    await Promise.all([...this.#open.keys()].map((workspace) => this.discard(workspace)));
  }

  #refuseIfClosing(): void {
    if (this.#isClosing) throw new Error("interrupted");
  }
}

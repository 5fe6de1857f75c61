/**
 * Everything that a benchmark starts and leaves on disk, so that all of it goes away however the benchmark ends.
 *
 * Invariant: a workspace is in `#open` from before its first process starts until its last one has ended.
 */
import { Workspace } from "../test/tools/workspace.js";

export class Lab {
  readonly #open = new Set<Workspace>();
  #isClosing = false;

  /** @throws once the lab closes */
  async workspace(): Promise<Workspace> {
    if (this.#isClosing) throw new Error("interrupted");
    const workspace = new Workspace();
    await workspace.open();
    this.#open.add(workspace);
    return workspace;
  }

  /** Ends the processes of a workspace and removes its files. */
  async discard(workspace: Workspace): Promise<void> {
    if (this.#open.delete(workspace)) await workspace.close();
  }

  /** Discards all there is; from now on there is nothing new. */
  async close(): Promise<void> {
    this.#isClosing = true;
    await Promise.all([...this.#open].map((workspace) => this.discard(workspace)));
  }
}

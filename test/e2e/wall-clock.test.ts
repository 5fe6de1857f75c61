/** Wall clocks that are set while the nodes run, and differ: nothing that the pair does goes by them, nor how long something has lasted. */
import { expect } from "chai";

import { writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { startPair } from "../tools/pair.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace } from "../tools/workspace.js";

const HOUR_SECONDS = 3600;

/** For a node whose clock is an hour further on whenever it looks at it. */
const LEAPING_CLOCK = `
    const Real = Date;
    let leaps = 0;
    globalThis.Date = class extends Real {
      constructor(...values) { super(...(values.length === 0 ? [Date.now()] : values)); }
      static now() { return Real.now() + leaps++ * ${HOUR_SECONDS * 1000}; }
    };`;
const LEAPING = [`--import=data:text/javascript,${encodeURIComponent(LEAPING_CLOCK)}`];

interface Choice {
  readonly lost: { readonly bytes: number; readonly seconds: number };
}

describe("a wall clock that is set", () => {
  const workspace = useWorkspace();

  it("again and again: checkpoints are taken, one after the other", async () => {
    const pair = await startPair(workspace, {
      primary: ["--checkpoint-interval", "50ms"],
      nodeOptions: LEAPING,
    });
    await pair.secondary.waitForStatus("periodic checkpoints", ({ epoch }) => epoch > 5);
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    await pair.checkpoint();
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("again and again: what has lasted for seconds is told as seconds", async () => {
    const pair = await startPair(workspace, { nodeOptions: LEAPING });
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    const { lost } = await waitFor(
      "the write to be what a failover would lose",
      async () =>
        (await pair.secondary.withQmp((client) =>
          client.execute("x-repl-failover", { "dry-run": true }),
        )) as Choice,
      (choice) => choice.lost.bytes === 64 * 1024,
    );
    expect(lost.seconds).to.be.greaterThan(0).and.lessThan(HOUR_SECONDS);
    for (const node of [pair.primary, pair.secondary])
      expect((await node.status()).uptimeSeconds)
        .to.be.greaterThan(0)
        .and.lessThan(HOUR_SECONDS);
  });
});

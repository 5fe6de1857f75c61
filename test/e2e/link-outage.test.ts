/** The link between the nodes fails in every way a network has: the guest goes on, and nothing is lost. */
import { expect } from "chai";

import { expectPattern, fioResult, startFio, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { LinkProxy } from "../tools/link-proxy.js";
import { type Pair, startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

describe("link outage", () => {
  const workspace = useWorkspace();

  /** A pair whose two connections run through proxies. */
  const startRoutedPair = async (): Promise<{ pair: Pair; links: LinkProxy[] }> => {
    const links: LinkProxy[] = [];
    const through = async (address: string): Promise<string> => {
      const link = await LinkProxy.start(workspace, address);
      links.push(link);
      return link.address;
    };
    const pair = await startPair(workspace, {
      primary: ["--replica-timeout", "1s"],
      route: async ({ replication, qmp }) => ({
        replication: await through(replication),
        qmp: await through(qmp),
      }),
    });
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    return { pair, links };
  };

  const expectDown = async (pair: Pair): Promise<void> => {
    const down = await pair.primary.waitForStatus(
      "not replicating",
      ({ primary, error }) => primary?.link.state !== "replicating" && error !== null,
    );
    expect(down.error).to.deep.include({ operation: "write", disk: "disk0" });
    expect(down.primary?.link.lastError).to.be.a("string");
    const refused = await pair.primary.verb("checkpoint");
    expect(refused.code).to.equal(3);
    expect(refused.stderr).to.match(
      /^repl-primary: checkpoint refused: the replica is \w+: .* not replicated\n$/,
    );
    expect(await pair.primary.succeed("status")).to.match(/^! 1 error|^! \d+ errors/m);
  };

  const expectMended = async (pair: Pair): Promise<void> => {
    const { error } = await pair.synchronised();
    expect(error).to.equal(null);
    await pair.checkpoint();
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    expect(await pair.secondary.status()).to.deep.include({ error: null, checkpointRefusal: null });
  };

  const outages = {
    cut: (link: LinkProxy) => {
      link.cut();
    },
    stalled: (link: LinkProxy) => {
      link.stall();
    },
    "swallowed by a black hole": (link: LinkProxy) => {
      link.blackHole();
    },
  } as const;

  for (const [name, fail] of Object.entries(outages)) {
    it(`${name}: the guest's writes complete, then and later; healed, the nodes are resynced`, async () => {
      const { pair, links } = await startRoutedPair();
      links.forEach(fail);
      await writePattern(pair.primaryUri(), 0x22, "512k", "1M");
      await expectDown(pair);
      // Given up, the replica costs nothing more.
      await writePattern(pair.primaryUri(), 0x33, "8M", "4M");
      await expectPattern(pair.primaryUri(), [0x11, "0", "512k"], [0x22, "512k", "1M"], [0x33, "8M", "4M"]);
      // The secondary shows its last checkpoint all the while.
      await expectPattern(pair.viewUri(), [0x11, "0", "1M"], [0, "1M", "15M"]);
      for (const link of links) link.heal();
      await expectMended(pair);
      await expectPattern(pair.viewUri(), [0x11, "0", "512k"], [0x22, "512k", "1M"], [0x33, "8M", "4M"]);
    });
  }

  it("cut behind writes that the replica has in memory only: they are sent again if it died, and not if it lives", async () => {
    const { pair, links } = await startRoutedPair();
    const resynced = async (): Promise<number> =>
      (await pair.primary.status()).disks[0]?.primary?.bytesResynced ?? Number.NaN;
    for (const dies of [false, true]) {
      const before = await resynced();
      await writePattern(pair.primaryUri(), dies ? 0x44 : 0x33, "4M", "8M");
      for (const link of links) link.cut();
      await pair.primary.waitForStatus(
        "not replicating",
        ({ primary }) => primary?.link.state !== "replicating",
      );
      // Without a write nothing is missed but what was in memory.
      if (dies) await pair.secondary.process.kill();
      if (dies) await pair.startSecondary();
      for (const link of links) link.heal();
      await pair.synchronised();
      const sent = (await resynced()) - before;
      if (dies)
        expect(sent)
          .to.be.greaterThan(0)
          .and.at.most(8 * 1024 * 1024);
      else expect(sent).to.equal(0);
    }
    await pair.checkpoint();
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("a black hole under load: fio sees no error, and the nodes are identical afterwards", async () => {
    const { pair, links } = await startRoutedPair();
    // Long enough for both rounds, resyncs beside it included.
    const fio = await startFio(workspace, pair.primaryUri(), { size: "32m", iodepth: 16, rate: "3m" });
    for (let round = 0; round < 2; round++) {
      await pair.primary.waitForStatus(
        "writes",
        ({ disks, primary }) =>
          primary?.link.state === "replicating" && (disks[0]?.primary?.writesReplicated ?? 0) > 0,
      );
      for (const link of links) link.blackHole();
      await pair.primary.waitForStatus(
        "the replica given up",
        ({ primary }) => primary?.link.state !== "replicating",
      );
      for (const link of links) link.heal();
      await pair.synchronised();
    }
    expect((await fioResult(fio)).error).to.equal(0);
    await expectMended(pair);
  });

  it("reset again and again under load: no checkpoint succeeds over a hole", async () => {
    const { pair, links } = await startRoutedPair();
    const fio = await startFio(workspace, pair.primaryUri(), { size: "16m", iodepth: 16, rate: "6m" });
    while (fio.isRunning) {
      for (const link of links) link.reset();
      await pair.synchronised();
      const { code, stderr } = await pair.primary.verb("checkpoint");
      expect(code, stderr).to.be.oneOf([0, 3]);
    }
    expect((await fioResult(fio)).error).to.equal(0);
    await expectMended(pair);
  });

  it("only the control connection is cut: checkpoints are refused until it is back, writes go on", async () => {
    const { pair, links } = await startRoutedPair();
    links[1]?.cut();
    await pair.primary.waitForStatus(
      "not replicating",
      ({ primary }) => primary?.link.state !== "replicating",
    );
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    expect((await pair.primary.verb("checkpoint")).code).to.equal(3);
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"]);
    links[1]?.heal();
    await expectMended(pair);
    await expectPattern(pair.viewUri(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
  });
});

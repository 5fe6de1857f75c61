/** An orderly end of both nodes, and their return on the same state directories. */
import { expect } from "chai";
import { access, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";

import { expectPattern, startFio, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { type NodeProcess, programOf } from "../tools/node-process.js";
import { MEBIBYTE, Pair, startPair } from "../tools/pair.js";
import { succeed } from "../tools/process.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace } from "../tools/workspace.js";

describe("clean stop and restart", () => {
  const workspace = useWorkspace();

  const ways = {
    "by the verb stop": async (node: NodeProcess): Promise<void> => {
      expect(await node.succeed("stop")).to.equal("stopped\n");
    },
    "by SIGTERM": (node: NodeProcess): Promise<void> => {
      node.process.signal("SIGTERM");
      return Promise.resolve();
    },
    "by SIGHUP, as when its terminal is closed": (node: NodeProcess): Promise<void> => {
      node.process.signal("SIGHUP");
      return Promise.resolve();
    },
  } as const;

  const expectStopped = async (node: NodeProcess): Promise<void> => {
    const { code, signal } = await node.process.ended();
    expect([code, signal]).to.deep.equal([0, null]);
    const files = await readdir(node.stateDirectory);
    expect(files.filter((file) => file.endsWith(".sock"))).to.deep.equal([]);
    const metadata = await readFile(join(node.stateDirectory, "metadata.json"), "utf8");
    expect(JSON.parse(metadata)).to.deep.include({ cleanShutdown: true });
    expect(node.log.filter(({ level }) => level > 40)).to.deep.equal([]);
  };

  for (const [way, stop] of Object.entries(ways)) {
    it(`${way}: the secondary comes back running, in the same epoch, with its view intact`, async () => {
      const pair = await startPair(workspace);
      await writePattern(pair.primaryUri(), 0x11, "0", "4M");
      const epoch = await pair.checkpoint();
      await writePattern(pair.primaryUri(), 0x22, "2M", "4M");
      await writePattern(pair.viewUri(), 0xaa, "1M", "512k");
      const view = [
        [0x11, "0", "1M"],
        [0xaa, "1M", "512k"],
        [0x11, "1536k", "2560k"],
        [0, "4M", "4M"],
      ] as const;
      await expectPattern(pair.viewUri(), ...view);

      await stop(pair.primary);
      await expectStopped(pair.primary);
      await stop(pair.secondary);
      await expectStopped(pair.secondary);
      let isSocketThere = true;
      await access(workspace.path("guest.sock")).catch(() => {
        isSocketThere = false;
      });
      expect(isSocketThere).to.equal(false);

      await pair.startSecondary();
      const back = await pair.secondary.status();
      expect(back).to.deep.include({ stage: "running", epoch, error: null });
      expect(back.lastCheckpoint?.epoch).to.equal(epoch);
      expect(back.secondary).to.deep.include({ rollback: "available", rollbackLostReason: null });
      await expectPattern(pair.viewUri(), ...view);

      await pair.startPrimary();
      await pair.synchronised();
      await pair.checkpoint();
      await expectPattern(pair.viewUri(), [0x11, "0", "2M"], [0x22, "2M", "4M"], [0, "6M", "1M"]);
      await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    });
  }

  it("its terminal is closed: it ends with 0, though there is no terminal to restore", async () => {
    const node = [
      process.execPath,
      ...[programOf("primary"), "--disk", `disk0=${workspace.path("disk0.img")}`, "--size", "1M"],
      ...["--listen", `unix:${workspace.path("guest.sock")}`, "--state-dir", workspace.path("primary")],
    ];
    const outcome = workspace.path("outcome");
    // As a shell with jobs does, it hands on what the end of its terminal sends to it.
    const run = `${node.map((word) => `'${word}'`).join(" ")} & trap "kill -HUP $!" HUP; wait $!; wait $!`;
    const command = `${run}; echo $? > '${outcome}'`;
    const terminal = await workspace.start("script", ["-qfc", command, "/dev/null"]);
    await waitFor(
      "the node to be ready",
      () => terminal.stdout.includes("ready"),
      (isReady) => isReady,
    );
    terminal.signal("SIGKILL");
    const code = await waitFor(
      "the node's exit code",
      () => readFile(outcome, "utf8").catch(() => ""),
      (text) => text.endsWith("\n"),
    );
    expect(code).to.equal("0\n");
  });

  it("the secondary first: the primary goes on alone, and catches up when it is back", async () => {
    const pair = await startPair(workspace);
    await pair.secondary.succeed("stop");
    await expectStopped(pair.secondary);
    await writePattern(pair.primaryUri(), 0x33, "0", "1M");
    await pair.startSecondary();
    await pair.synchronised();
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x33, "0", "1M"]);
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("under load: both end with 0, and what the guest was told is on both disks", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x44, "32M", "16M");
    const fio = await startFio(workspace, pair.primaryUri(), { size: "32m", iodepth: 16 });
    await pair.primary.waitForStatus(
      "writes",
      ({ disks }) => (disks[0]?.primary?.writesReplicated ?? 0) > 100,
    );
    pair.primary.process.signal("SIGTERM");
    await expectStopped(pair.primary);
    expect((await fio.ended()).code, "its guest loses its disk").to.not.equal(0);
    pair.secondary.process.signal("SIGTERM");
    await expectStopped(pair.secondary);
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("during a copy that is held back: both end at once, and the copy begins anew", async () => {
    await succeed("dd", [
      "if=/dev/urandom",
      `of=${workspace.path("primary-disk0.img")}`,
      `bs=${MEBIBYTE}`,
      "count=8",
    ]);
    const pair = new Pair(workspace, { sizeBytes: 8 * MEBIBYTE, primary: ["--resync-rate", "1K"] });
    await pair.startSecondary();
    await pair.startPrimary();
    await pair.primary.succeed("stop");
    await expectStopped(pair.primary);
    await pair.startPrimary();
    await pair.primary.withQmp((client) =>
      client.execute("block-job-set-speed", { device: "mirror-disk0", speed: 0 }),
    );
    await pair.synchronised();
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });
});

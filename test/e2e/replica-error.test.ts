/** --on-replica-error stop, with real processes: changes wait for a replica that is away; reads, detach and stop don't. */
import { expect } from "chai";

import { expectPattern, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { MEBIBYTE, type Pair, startPair } from "../tools/pair.js";
import { isSettled } from "../tools/outcome.js";
import { run } from "../tools/process.js";
import { useWorkspace } from "../tools/workspace.js";

describe("a replica that is away, with --on-replica-error stop", () => {
  const workspace = useWorkspace();
  let pair: Pair;

  /** The secondary is dead, and a guest's write waits. */
  beforeEach(async () => {
    pair = await startPair(workspace, {
      sizeBytes: 4 * MEBIBYTE,
      primary: ["--on-replica-error", "stop", "--replica-timeout", "500ms"],
    });
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.secondary.process.kill();
  });

  async function writeThatWaits(): Promise<Promise<void>[]> {
    const written = writePattern(pair.primaryUri(), 0x22, "512k", "1M");
    const status = await pair.primary.waitForStatus(
      "a change that waits",
      ({ primary }) => (primary?.waitingChanges ?? 0) > 0,
    );
    expect(status.primary?.onReplicaError).to.equal("stop");
    expect(await pair.primary.succeed("status")).to.match(
      /^! guests wait for the replica with 1 change: repl-primary detach goes on without it$/m,
    );
    await pair.primary.logged("that changes wait", ({ msg }) =>
      msg.startsWith("changes of guests wait for the replica"),
    );
    await expectPattern(pair.primaryUri(), [0x11, "0", "512k"], [0, "2M", "1M"]);
    expect(await isSettled(written)).to.equal(false);
    return [written];
  }

  it("changes wait, reads go on; they complete when it is back, and it has them", async () => {
    const written = await writeThatWaits();
    await pair.startSecondary();
    await Promise.all(written);
    await pair.synchronised();
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "512k"], [0x22, "512k", "1M"]);
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    await pair.primary.logged("that changes go on", ({ msg }) => msg === "changes of guests go on");
  });

  it("a change that comes while it is away already does not reach the primary's disk either", async () => {
    await pair.primary.waitForStatus("away", ({ primary }) => primary?.link.state === "disconnected");
    const written = await writeThatWaits();
    expect((await pair.primary.status()).error).to.equal(null);
    await expectPattern(pair.primaryUri(), [0x11, "0", "1M"], [0, "1M", "3M"]);
    await pair.startSecondary();
    await Promise.all(written);
  });

  it("detach: they go on alone, and the next attach sends them", async () => {
    const written = await writeThatWaits();
    await pair.primary.succeed("detach");
    await Promise.all(written);
    await writePattern(pair.primaryUri(), 0x33, "2M", "1M");
    const { replication, qmp } = pair.addresses;
    await pair.startSecondary();
    await pair.primary.succeed("attach", "--replica", `nbd://${replication}`, "--replica-qmp", `tcp:${qmp}`);
    await pair.synchronised();
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "512k"], [0x22, "512k", "1M"], [0x33, "2M", "1M"]);
  });

  it("stop: the node ends, and the guest is not told that its change was made", async () => {
    const written = run("qemu-io", [...["-f", "raw", "-c", "write -P 0x22 512k 1M", pair.primaryUri()]]);
    await pair.primary.waitForStatus(
      "a change that waits",
      ({ primary }) => (primary?.waitingChanges ?? 0) > 0,
    );
    await pair.primary.succeed("stop");
    expect((await pair.primary.process.ended()).code).to.equal(0);
    const { code, stdout, stderr } = await written;
    expect(code !== 0 || stdout.includes("failed"), `${stdout}${stderr}`).to.equal(true);
  });

  it("a primary that is started while its replica is away waits as well", async () => {
    await pair.primary.process.kill();
    await pair.startPrimary();
    const written = await writeThatWaits();
    await pair.startSecondary();
    await Promise.all(written);
    await pair.synchronised();
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });
});

/** What is left after a failover, as QEMU's own client reads it from the view and from the disk file. */
import { expect } from "chai";

import { expectPattern, qemuIo, tryQemuIo, writePattern } from "../tools/clients.js";
import { startPair, type Pair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

describe("failover of a pair", () => {
  const workspace = useWorkspace();

  /** A checkpoint of 0x11, then 0x22 from the primary and 0xaa from the view, which overlap. */
  const startWithHistory = async (): Promise<Pair> => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "256k");
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0x22, "64k", "128k");
    await qemuIo(pair.viewUri(), "write -P 0xaa 128k 32k", "write -z 240k 8k");
    return pair;
  };

  it("leaves the last checkpoint plus the view's own writes", async () => {
    const pair = await startWithHistory();
    await pair.failOver();
    const expected = [
      [0x11, "0", "128k"],
      [0xaa, "128k", "32k"],
      [0x11, "160k", "80k"],
      [0, "240k", "8k"],
      [0x11, "248k", "8k"],
      [0, "256k", "768k"],
    ] as const;
    await expectPattern(pair.viewUri(), ...expected);
    await writePattern(pair.viewUri(), 0x77, "1M", "64k");
    const { code } = await pair.secondary.process.terminate();
    expect(code).to.equal(0);
    await expectPattern(pair.secondaryFile(), ...expected, [0x77, "1M", "64k"]);
  });

  it("--to latest leaves everything received, and drops the view's own writes", async () => {
    const pair = await startWithHistory();
    await pair.failOver("--to", "latest");
    const expected = [
      [0x11, "0", "64k"],
      [0x22, "64k", "128k"],
      [0x11, "192k", "64k"],
      [0, "256k", "1M"],
    ] as const;
    await expectPattern(pair.viewUri(), ...expected);
    await pair.secondary.succeed("stop");
    await expectPattern(pair.secondaryFile(), ...expected);
  });

  it("--dry-run tells what each target would lose, and changes nothing", async () => {
    const pair = await startWithHistory();
    const { epoch } = await pair.secondary.status();
    const plan = await pair.secondary.succeed("failover", "--dry-run");
    const [first, second, ...rest] = plan.split("\n");
    expect(first).to.match(
      new RegExp(
        `^failover to checkpoint in epoch ${epoch} would lose 128 KiB, the primary's writes of the last .* s$`,
      ),
    );
    expect(second).to.match(
      /^instead, to latest: would lose 40 KiB, the writes made through the view of the last .* s$/,
    );
    expect(rest).to.deep.equal([""]);
    expect(await pair.secondary.status()).to.deep.include({ stage: "running", epoch, error: null });
    await writePattern(pair.primaryUri(), 0x33, "0", "4k");
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x33, "0", "4k"], [0x11, "4k", "60k"], [0x22, "64k", "128k"]);
  });

  it("takes two disks to the same instant", async () => {
    const pair = await startPair(workspace, { disks: ["system", "data"] });
    await writePattern(pair.primaryUri("system"), 0x51, "0", "1M");
    await writePattern(pair.primaryUri("data"), 0xd1, "0", "1M");
    await pair.checkpoint();
    await writePattern(pair.primaryUri("system"), 0x52, "0", "1M");
    await writePattern(pair.viewUri("data"), 0xda, "0", "4k");
    await pair.failOver();
    await expectPattern(pair.viewUri("system"), [0x51, "0", "1M"]);
    await expectPattern(pair.viewUri("data"), [0xda, "0", "4k"], [0xd1, "4k", "1020k"]);
  });

  it("closes the secondary to the old primary, whose guest goes on without an error", async () => {
    const pair = await startWithHistory();
    await pair.failOver();
    await writePattern(pair.primaryUri(), 0x99, "0", "64k");
    await expectPattern(pair.primaryUri(), [0x99, "0", "64k"]);
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"]);
    const { primary } = await pair.primary.waitForStatus(
      "refused by its replica",
      (status) => status.primary?.link.state === "refused",
    );
    expect(primary?.link.lastError).to.include("the secondary was promoted by a failover");
    const late = await tryQemuIo(`nbd://${pair.addresses.replication}/disk0`, "write -P 0x66 0 64k");
    expect([late.code, late.stderr]).to.satisfy(
      ([code, stderr]: [number, string]) => code !== 0 && stderr.includes("promoted"),
    );
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"]);
  });

  it("is remembered: a restart comes back promoted, with the same content", async () => {
    const pair = await startWithHistory();
    await pair.failOver();
    await writePattern(pair.viewUri(), 0x77, "0", "4k");
    await pair.secondary.succeed("stop");
    await pair.startSecondary();
    expect((await pair.secondary.status()).stage).to.equal("done");
    await expectPattern(pair.viewUri(), [0x77, "0", "4k"], [0x11, "4k", "124k"], [0xaa, "128k", "32k"]);
  });
});

/** What a node gives up for a new primary, from its way back to the file in which it is saved. */
import { expect } from "chai";
import { randomUUID } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { Introduction } from "../../../src/replication/secondary/introduction.js";
import { extractSalvage } from "../../../src/replication/secondary/salvage.js";
import type { Held } from "../../tools/failing-device.js";
import type { SecondaryNode } from "../../tools/secondary-node.js";
import { introduce, openSecondary, PAGE, put, sessionCheckpoint } from "./secondary-fixture.js";

describe("what a node gives up", () => {
  let node: SecondaryNode;
  let output: string;

  beforeEach(async () => {
    output = join(await mkdtemp(join(tmpdir(), "given-up-")), "images");
    ({ node } = await openSecondary());
    // It was a replica.
    await introduce(node, "before");
    await sessionCheckpoint(node, "before");
  });

  afterEach(async () => {
    await node.dispose();
    await rm(join(output, ".."), { recursive: true });
  });

  /** It was promoted, has changed a page by itself, and is the secondary of the node that came after it. @returns what its primary tells */
  async function comeBack(byte: number): Promise<Partial<Introduction>> {
    await node.failover("latest");
    await put(node.view(), 0, PAGE, byte);
    await node.close();
    await node.reopen({ demote: true });
    const { generation, ancestors, epoch } = node.secondary.metadata;
    if (generation === null) throw new Error("it has no generation");
    return { generation: randomUUID(), ancestors: [generation, ...ancestors], epoch };
  }

  /** It comes back and is resynced, and the checkpoint at the end of that is announced, and not durable before `flush` is released. */
  async function resyncNotDurably(): Promise<{ told: Partial<Introduction>; epoch: number; flush: Held }> {
    const told = await comeBack(0x51);
    await introduce(node, "s", told);
    await put(node.replication(), 0, PAGE, 0x22);
    const flush = node.disk().hold({ operation: "flush" });
    const epoch = await node.secondary.checkpoint({ session: "s", epoch: null });
    await flush.arrived(1);
    return { told, epoch, flush };
  }

  /** Of the only disk. */
  async function salvaged(): Promise<Buffer> {
    await rm(output, { recursive: true, force: true });
    await extractSalvage(node.state, output);
    return readFile(join(output, "disk0.img"));
  }

  function expectSaved(image: Buffer, byte: number): void {
    expect(image.subarray(0, PAGE).equals(Buffer.alloc(PAGE, byte))).to.equal(true);
  }

  it("is saved although the primary introduces itself again before the checkpoint that ends its resync is durable", async () => {
    const { told, epoch, flush } = await resyncNotDurably();
    await introduce(node, "again", { ...told, epoch });
    flush.release();
    await node.secondary.checkpointDurable();
    await sessionCheckpoint(node, "again");
    expectSaved(await salvaged(), 0x51);
  });

  it("is saved although the epoch after the one that overwrote it has lost its before-images, and a crash has taken its beginning back", async () => {
    const { told } = await resyncNotDurably();
    node.state.fail({ operation: "write", name: /^hidden/, count: 1 });
    await put(node.replication(), 2 * PAGE, PAGE, 0x23);
    await node.applied();
    await node.crashAndReopen();
    expect(node.secondary.overlays?.isBroken).to.equal(true);
    await introduce(node, "again", told);
    await put(node.replication(), 0, PAGE, 0x24);
    await sessionCheckpoint(node, "again");
    expectSaved(await salvaged(), 0x51);
  });

  it("is nothing where the node goes back to what it had", async () => {
    let told = await comeBack(0x51);
    await introduce(node, "s", told);
    await put(node.replication(), 0, PAGE, 0x22);
    await sessionCheckpoint(node, "s");
    expectSaved(await salvaged(), 0x51);
    const saved = node.secondary.salvage;
    told = await comeBack(0x52);
    expect(node.secondary.salvage).to.equal(saved);
    await introduce(node, "t", told);
    await put(node.replication(), 0, PAGE, 0x23);
    await node.failover("checkpoint");
    expect(node.secondary.salvage).to.equal(saved);
    expectSaved(await salvaged(), 0x51);
    await put(node.view(), PAGE, PAGE, 0x53);
    expect(node.secondary.stage).to.equal("done");
  });

  it("is saved where the checkpoint of what is given up was lost before", async () => {
    await introduce(node, "s");
    node.state.fail({ operation: "write", name: /^hidden/, count: 1 });
    await put(node.replication(), 0, PAGE, 0x51);
    await node.applied();
    await node.close();
    await node.reopen({ discardLocalChanges: true });
    await introduce(node, "u", { generation: randomUUID(), primary: "another" });
    await put(node.replication(), 0, PAGE, 0x22);
    await sessionCheckpoint(node, "u");
    expectSaved(await salvaged(), 0x51);
  });
});

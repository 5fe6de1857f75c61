/** How the histories of two nodes part and are told apart. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { DeviceError } from "../../../src/errors.js";
import { readMetadata } from "../../../src/meta/metadata.js";
import type { AckMode } from "../../../src/status.js";
import { InProcessPair } from "../../tools/in-process-pair.js";
import { outcome, turns } from "../../tools/outcome.js";
import { waitFor } from "../../tools/wait-for.js";
import { expectFailure, introduce } from "./secondary-fixture.js";

const SIZE_BYTES = 1024 * 1024;
const BLOCK = Buffer.alloc(4096, 0x5a);
const OTHER = "7d2b5f5e-92a7-4f6a-8a54-58c9a2f6b1aa";

describe("histories of a pair", () => {
  let pair: InProcessPair;

  async function open(ackMode: AckMode = "memsync"): Promise<void> {
    pair = await InProcessPair.open({ sizes: [SIZE_BYTES], ackMode });
  }

  afterEach(() => pair.dispose());

  const generations = (): (string | null)[] => [
    pair.primary.metadata.generation,
    pair.node.secondary.metadata.generation,
  ];

  /** The replica can't be reached any more, and nobody tells the primary that it is being promoted. */
  async function failover(): Promise<void> {
    await pair.node.failover("latest");
    expect(pair.node.secondary.stage).to.equal("done");
  }

  it("a secondary takes over its primary's generation with the checkpoint that ends the first copy", async () => {
    await open();
    const [generation] = generations();
    expect(generations()).to.deep.equal([generation, null]);
    await pair.attach();
    expect(generations()).to.deep.equal([generation, generation]);
  });

  for (const ackMode of ["async", "memsync", "sync"] as const) {
    it(`ack mode ${ackMode}: the first write without the replica is of another generation, before it is acknowledged`, async () => {
      await open(ackMode);
      await pair.attach();
      const [before] = generations();
      await pair.primary.detach();
      expect(generations()[0], "an outage alone changes nothing").to.equal(before);
      await pair.guest().write(0, BLOCK, Flag.None);
      const [alone] = generations();
      expect(alone).to.not.equal(before);
      expect(pair.primary.metadata.ancestors).to.deep.equal([before]);
      await pair.guest().write(4096, BLOCK, Flag.None);
      expect(generations(), "one for an outage").to.deep.equal([alone, before]);

      await pair.attach();
      expect(generations()).to.deep.equal([alone, alone]);
      expect(pair.node.secondary.metadata.ancestors).to.deep.equal([before]);
    });
  }

  for (const sizeBytes of [1, 513]) {
    it(`a replica of a disk of ${sizeBytes} B is taken back after an outage, and sent what it missed`, async () => {
      pair = await InProcessPair.open({ sizes: [sizeBytes] });
      await pair.attach();
      await pair.primary.detach();
      const content = Buffer.alloc(sizeBytes, 0x5a);
      await pair.guest().write(0, content, Flag.None);
      await pair.attach();
      const view = Buffer.alloc(sizeBytes);
      await pair.view().read(0, view);
      expect(view.equals(content)).to.equal(true);
    });
  }

  it("outages while no checkpoint can be taken draw one generation, however many they are: the replica's is not forgotten", async () => {
    await open();
    await pair.attach();
    const [before] = generations();
    const { replicationAddress: address, qmpAddress: control } = pair;
    for (const operation of ["create", "rename"] as const)
      pair.node.state.fail({ operation, name: /^(hidden-|spare)/ }, "ENOSPC");
    for (let outage = 0; outage < 20; outage++) {
      await pair.primary.detach();
      await pair.guest().write(0, BLOCK, Flag.None);
      await pair.primary.attach({ address, control, uri: "in this process" });
      await waitFor(
        "the resync",
        () => pair.primary.checkpointRefusal(),
        (refusal) => refusal === null,
      );
      await expectFailure(pair.checkpoint(), /injected ENOSPC/);
    }
    expect(pair.primary.metadata.ancestors).to.deep.equal([before]);
    expect(generations()[1]).to.equal(before);
  });

  it("ack mode sync: a guest that flushes while the disks are handed over begins no history of its own", async () => {
    await open("sync");
    await pair.attach();
    const [before] = generations();
    const state = { isOver: false };
    const switched = pair.primary.switchOver().finally(() => {
      state.isOver = true;
    });
    const flushes: Promise<void>[] = [];
    while (!state.isOver) {
      flushes.push(pair.guest().flush());
      await turns(1);
    }
    const { generation } = await switched;
    await Promise.all(flushes);
    expect(generations()).to.deep.equal([before, generation]);
    expect(pair.node.secondary.metadata.ancestors).to.deep.equal([before]);
  });

  it("a change that a guest asks for while the disks are handed over is on both sides, or refused and on neither", async () => {
    await open();
    await pair.attach();
    const state = { isOver: false };
    const switched = pair.primary.switchOver().finally(() => {
      state.isOver = true;
    });
    const changes: Promise<string>[] = [];
    while (!state.isOver) {
      if (changes.length * BLOCK.length < SIZE_BYTES)
        changes.push(outcome(pair.guest().write(changes.length * BLOCK.length, BLOCK, Flag.None)));
      await turns(1);
    }
    await switched;
    const outcomes = await Promise.all(changes);
    expect(outcomes).to.include("ESHUTDOWN");
    for (const [media] of [pair.primaryMedia, pair.secondaryMedia]) {
      const content = media?.contents() ?? Buffer.of();
      const written = outcomes.map((_, index) => {
        const at = index * BLOCK.length;
        return content.subarray(at, at + BLOCK.length).equals(BLOCK);
      });
      expect(written).to.deep.equal(outcomes.map((each) => each === "done"));
    }
  });

  it("a node that hands its disks over and can't flush them is the other's secondary all the same, and comes back by a full copy", async () => {
    await open();
    await pair.attach();
    const isHandedOver = (): boolean => pair.primary.isHandedOver;
    const failing = pair.primaryDisks[0]?.fail({ operation: "flush", where: isHandedOver });
    const { generation } = await pair.primary.switchOver();
    expect(failing?.taken).to.equal(1);
    expect(generation).to.equal(pair.node.secondary.metadata.generation);
    expect(await readMetadata(pair.primaryState)).to.deep.include({
      role: "secondary",
      handedOver: true,
      tenure: null,
    });
    failing?.remove();
  });

  it("a crash of the primary while it went on alone does not make it forget that it did", async () => {
    await open();
    await pair.attach();
    await pair.primary.detach();
    await pair.guest().write(0, BLOCK, Flag.None);
    const [alone] = generations();
    await pair.restartPrimary();
    expect(generations()[0]).to.equal(alone);
  });

  it("a generation that can't be put on record breaks a promise until it can, which is tried again", async () => {
    await open();
    await pair.attach();
    const { primaryState: state } = pair;
    state.intercept = ({ kind }) =>
      kind === "replace" ? Promise.reject(new DeviceError("ENOSPC", "the file system is full")) : undefined;
    const recorded = (): unknown =>
      (JSON.parse(state.contents("metadata.json").toString()) as { generation: unknown }).generation;
    const [before] = generations();
    await pair.primary.detach();
    expect(pair.primary.brokenPromise()).to.equal(null);
    await pair.guest().write(0, BLOCK, Flag.None);
    const [alone] = generations();
    expect([recorded(), alone === before]).to.deep.equal([before, false]);
    const broken = `generation ${alone ?? ""} is not on record, so that after a crash what guests write without the replica would pass for the replica's: the file system is full`;
    expect(pair.primary.brokenPromise()).to.equal(broken);
    await pair.guest().write(4096, BLOCK, Flag.None);
    expect(pair.primary.brokenPromise()).to.equal(broken);
    state.intercept = () => undefined;
    await waitFor(
      "the record",
      () => pair.primary.brokenPromise(),
      (promise) => promise === null,
    );
    expect(recorded()).to.equal(alone);
  });

  it("a promoted secondary refuses its old primary", async () => {
    await open();
    await pair.attach();
    await pair.primary.detach();
    await failover();
    await expectFailure(pair.attach(), /promoted by a failover/);
  });

  /** Resolves when the secondary knows that its primary has left. */
  async function detached(): Promise<void> {
    await pair.primary.detach();
    while (pair.node.connections.connections().length > 0) await turns();
  }

  it("a primary whose data has nothing to do with the secondary's is refused, and nothing is changed", async () => {
    await open();
    await pair.attach();
    await detached();
    const before = pair.node.secondary.metadata;
    await expectFailure(
      introduce(pair.node, "s", { generation: OTHER }),
      /^the secondary holds other data: .*--discard-local-changes/,
    );
    expect(pair.node.secondary.metadata).to.deep.equal(before);
  });

  it("another replica is of another generation: the one before can be told from it for good", async () => {
    await open();
    await pair.attach();
    const [first] = generations();
    await pair.primary.detach();
    const other = await InProcessPair.open({ sizes: [SIZE_BYTES] });
    try {
      const { replicationAddress: address, qmpAddress: control } = other;
      await pair.primary.attach({ address, control, uri: "another" });
      await pair.synchronised();
      await pair.guest().write(0, BLOCK, Flag.None);
      const [second] = generations();
      expect(second).to.not.equal(first);
      expect(other.node.secondary.metadata.generation).to.equal(second);
      expect(pair.node.secondary.metadata.generation).to.equal(first);
      await pair.primary.detach();
    } finally {
      await other.dispose();
    }
  });

  it("a primary with older data than the secondary is refused", async () => {
    await open();
    await pair.attach();
    await pair.primary.detach();
    await pair.guest().write(0, BLOCK, Flag.None);
    const [alone] = generations();
    await pair.attach();
    const [older] = pair.node.secondary.metadata.ancestors;
    if (older === undefined || alone === null) throw new Error("no ancestor");
    await detached();
    await expectFailure(
      introduce(pair.node, "s", { generation: older, ancestors: [] }),
      /^the secondary has newer data than the primary: .*start the primary's node as its secondary/,
    );
    await expectFailure(
      introduce(pair.node, "s", { generation: OTHER, ancestors: [older] }),
      /^split brain: both nodes changed since they were the same, the primary 0 .*--discard-local-changes/,
    );
  });
});

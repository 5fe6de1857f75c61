/** What the logs of both nodes tell of a replica that refuses its primary for as long as nobody does something about it. */
import { expect } from "chai";
import type { Clock } from "../../../src/clock.js";
import { UnreachableError } from "../../../src/errors.js";
import { QmpError } from "../../../src/qmp/errors.js";
import { Link, type LinkOptions } from "../../../src/replication/primary/link.js";
import type { Welcome } from "../../../src/replication/protocol.js";
import { memoryLogger } from "../../tools/memory-logger.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { failureOf, turns } from "../../tools/outcome.js";
import { SecondaryNode } from "../../tools/secondary-node.js";
import { GENERATION, introduce, sessionCheckpoint, SIZE_BYTES } from "./secondary-fixture.js";

const OTHER_GENERATION = "b8f0ac5e-2e1a-4c9b-9a55-0d6a3f7f1c11";

describe("a refusal that lasts", () => {
  let logged: Record<string, unknown>[];

  beforeEach(() => {
    logged = [];
  });

  const told = (message: string, level: number): unknown[] =>
    logged.filter((line) => line["msg"] === message && line["level"] === level);

  it("is one line of the secondary's log, until another primary is admitted, or refused for something else", async () => {
    const log = memoryLogger(logged);
    const media = [new MemoryDevice(SIZE_BYTES)];
    const node = await SecondaryNode.open({ media, state: new MemoryStateDirectory(), log });
    const refused = async (bytes: number, generation: string): Promise<string> => {
      const dirty = { bytes, first: [] };
      const stranger = { primary: "another", generation, ancestors: [], dirty };
      return (await failureOf(introduce(node, "late", stranger))).message;
    };
    await introduce(node, "first");
    await sessionCheckpoint(node, "first");
    for (let attempt = 1; attempt <= 5; attempt++)
      expect(await refused(attempt, OTHER_GENERATION)).to.match(/^the secondary holds other data/);
    expect(told("primary refused", 50)).to.have.length(1);
    expect(told("primary refused", 20)).to.have.length(4);
    await introduce(node, "second");
    await refused(6, OTHER_GENERATION);
    expect(told("primary refused", 50)).to.have.length(2);
    await node.dispose();
  });

  it("is one line of the primary's log, though its text grows with what guests write", async () => {
    const timers: (() => void)[] = [];
    const clock: Clock = {
      nowMs: () => 0,
      after: (_ms, call) => {
        timers.push(call);
        return () => undefined;
      },
      every: () => () => undefined,
    };
    const splitBrain = (bytes: number): QmpError =>
      new QmpError("GenericError", "split-brain", `split brain: the primary changed ${bytes} bytes`, "state");
    const failures = [
      new UnreachableError("unreachable", "nobody there"),
      splitBrain(4096),
      splitBrain(8192),
      splitBrain(12288),
      new UnreachableError("unreachable", "nobody there"),
      new UnreachableError("unreachable", "nobody there"),
      // A QEMU has one code for all.
      new QmpError("GenericError", "qmp-error", "one reason"),
      new QmpError("GenericError", "qmp-error", "another reason"),
    ];
    const link = new Link({
      disks: [],
      clock,
      control: { kind: "unix", path: "/control" },
      lineage: () => ({ generation: GENERATION, ancestors: [] }),
      epoch: () => 0,
      events: { stateChanged: () => undefined },
      log: memoryLogger(logged),
      network: {
        control: () =>
          Promise.resolve({
            handshake: (): Promise<Welcome> => Promise.reject(failures.shift() ?? new Error("none is left")),
            close: () => Promise.resolve(),
          }),
      },
    } as unknown as LinkOptions);
    await link.start(true);
    for (let attempt = 2; attempt < 8; attempt++) {
      await turns();
      timers.shift()?.();
    }
    await turns();
    expect(failures).to.deep.equal([]);
    expect(told("replica lost", 40).map((line) => (line as { error: string }).error)).to.deep.equal([
      "nobody there",
      "split brain: the primary changed 4096 bytes",
      "nobody there",
      "one reason",
      "another reason",
    ]);
    expect(told("replica lost", 20)).to.have.length(3);
    await link.stop();
  });
});

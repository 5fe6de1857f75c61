import { expect } from "chai";

import { Gate } from "../../../src/block/gate.js";
import { systemClock } from "../../../src/clock.js";
import { Deferred } from "../../../src/deferred.js";
import { LinkError } from "../../../src/errors.js";
import { Checkpointer, type CheckpointerParts } from "../../../src/replication/primary/checkpointer.js";
import { LifeClock, VirtualTime } from "../../simulation/virtual-time.js";
import { failureOf, isSettled, turns } from "../../tools/outcome.js";

/** A checkpointer whose surroundings are played by the test, and that writes down what it does. */
class Stage {
  readonly gate = new Gate();
  readonly done: string[] = [];
  refusal: string | null = null;
  epoch = 7;
  drawnDown: Promise<void> = Promise.resolve();
  drawnDownBy = 0;
  /** How the gate was when writes could take all memory again. */
  risenWhile: "shut" | "open" | null = null;
  drained: Promise<void> = Promise.resolve();
  sent: Promise<void> = Promise.resolve();
  prepared = 0;
  readonly checkpointer: Checkpointer;

  /** What became of the checkpoints, as the dirty map is told. */
  readonly durable: boolean[] = [];

  constructor(parts: Partial<CheckpointerParts> = {}) {
    this.checkpointer = new Checkpointer({
      gate: this.gate,
      drawDown: async () => {
        this.drawnDownBy++;
        await this.drawnDown;
        return () => {
          this.drawnDownBy--;
          this.risenWhile = this.gate.isShut ? "shut" : "open";
        };
      },
      drain: (): Promise<void> => {
        this.#note("drain");
        return this.drained;
      },
      refusal: () => this.refusal,
      nextEpoch: () => ++this.epoch,
      prepare: (): Promise<void> => {
        this.prepared++;
        return Promise.resolve();
      },
      atInstant: () => (isDurable) => {
        this.durable.push(isDurable);
      },
      send: (epoch): Promise<void> => {
        this.#note(`send ${epoch}`);
        return this.sent;
      },
      onCheckpoint: (epoch) => {
        this.#note(`taken ${epoch}`);
      },
      clock: systemClock,
      ...parts,
    });
  }

  #note(what: string): void {
    this.done.push(`${what}, gate ${this.gate.isShut ? "shut" : "open"}, ${this.gate.inside} inside`);
  }
}

describe("Checkpointer", () => {
  it("shuts the gate, drains, sends, opens the gate, and waits until the checkpoint is durable", async () => {
    const stage = new Stage();
    stage.gate.tryEnter();
    const checkpoint = stage.checkpointer.checkpoint();
    await turns();
    expect(stage.done, "while a write is under way").to.deep.equal([]);
    const held = new Deferred<void>();
    stage.sent = held.promise;
    stage.gate.leave();
    await turns();
    const late = stage.gate.enter();
    expect(await isSettled(late), "a write while the secondary is asked").to.equal(false);
    expect(stage.done).to.deep.equal(["drain, gate shut, 0 inside", "send 8, gate shut, 0 inside"]);
    held.resolve();
    await late;
    await turns();
    expect(stage.done.at(-1)).to.equal("taken 8, gate open, 1 inside");
    expect(await isSettled(checkpoint), "not durable yet").to.equal(false);
    stage.checkpointer.durable(7);
    expect(await isSettled(checkpoint), "that was an older one").to.equal(false);
    stage.checkpointer.durable(8);
    expect(await checkpoint).to.equal(8);
  });

  it("takes word of durability that comes before the answer to the checkpoint", async () => {
    const stage: Stage = new Stage({
      send: (epoch) => {
        stage.checkpointer.durable(epoch);
        return Promise.resolve();
      },
    });
    expect(await stage.checkpointer.checkpoint()).to.equal(8);
  });

  it("is refused before it shuts the gate", async () => {
    const stage = new Stage();
    stage.refusal = "no replica is attached";
    const error = await failureOf(stage.checkpointer.checkpoint());
    expect(error.message).to.equal("checkpoint refused: no replica is attached");
    expect(error).to.have.property("code", "checkpoint-refused");
    expect([stage.done, stage.gate.isShut]).to.deep.equal([[], false]);
  });

  it("lets writes go on while what waits for the replica is drawn down, and so it stays until the gate is shut", async () => {
    const stage = new Stage();
    const held = new Deferred<void>();
    stage.drawnDown = held.promise;
    const checkpoint = stage.checkpointer.checkpoint();
    await turns();
    expect([stage.drawnDownBy, stage.prepared, stage.gate.tryEnter()]).to.deep.equal([1, 0, true]);
    held.resolve();
    await turns();
    expect([stage.drawnDownBy, stage.prepared, stage.done]).to.deep.equal([1, 1, []]);
    stage.gate.leave();
    await turns();
    expect([stage.drawnDownBy, stage.risenWhile]).to.deep.equal([0, "shut"]);
    stage.checkpointer.durable(8);
    expect(await checkpoint).to.equal(8);
  });

  it("is refused when the replica is lost while what waits for it is drawn down, and nothing was prepared", async () => {
    const stage = new Stage();
    const held = new Deferred<void>();
    stage.drawnDown = held.promise;
    const checkpoint = failureOf(stage.checkpointer.checkpoint());
    await turns();
    stage.refusal = "the replica is reconnecting";
    held.resolve();
    expect((await checkpoint).message).to.equal("checkpoint refused: the replica is reconnecting");
    expect([stage.drawnDownBy, stage.risenWhile, stage.prepared, stage.done]).to.deep.equal([
      0,
      "open",
      0,
      [],
    ]);
  });

  it("is refused when a write fails while it is waited for, and lets the next ones go on", async () => {
    const held = new Deferred<void>();
    const stage = new Stage();
    stage.drained = held.promise;
    const checkpoint = failureOf(stage.checkpointer.checkpoint());
    await turns();
    stage.refusal = "65536 bytes are not replicated";
    held.resolve();
    expect((await checkpoint).message).to.equal("checkpoint refused: 65536 bytes are not replicated");
    expect([stage.done, stage.gate.isShut]).to.deep.equal([["drain, gate shut, 0 inside"], false]);
    expect(stage.epoch, "no number is used up").to.equal(7);
  });

  it("opens the gate when the secondary does not take it, and can be asked again", async () => {
    const stage = new Stage();
    stage.sent = Promise.reject(new LinkError("link-lost", "gone"));
    expect((await failureOf(stage.checkpointer.checkpoint())).message).to.equal("gone");
    expect(stage.gate.isShut).to.equal(false);
    expect(stage.done.at(-1)).to.equal("send 8, gate shut, 0 inside");
    stage.sent = Promise.resolve();
    const again = stage.checkpointer.checkpoint();
    await turns();
    stage.checkpointer.durable(9);
    expect(await again).to.equal(9);
  });

  it("fails at once when the secondary says that it is not durable", async () => {
    const stage = new Stage();
    const checkpoint = failureOf(stage.checkpointer.checkpoint());
    await turns();
    stage.checkpointer.failed({ epoch: 7, reason: "an older one" });
    expect(await isSettled(checkpoint)).to.equal(false);
    stage.checkpointer.failed({ epoch: 8, reason: "no space: make room" });
    const error = await checkpoint;
    expect(error).to.have.property("code", "checkpoint-failed");
    expect(error.message).to.equal("checkpoint failed on the secondary: no space: make room");
    expect(stage.durable).to.deep.equal([false]);
    stage.checkpointer.failed({ epoch: 8, reason: "nobody waits" });
    const again = stage.checkpointer.checkpoint();
    await turns();
    stage.checkpointer.durable(9);
    expect(await again).to.equal(9);
  });

  it("fails when the link is lost before it is durable", async () => {
    const stage = new Stage();
    const checkpoint = failureOf(stage.checkpointer.checkpoint());
    await turns();
    stage.checkpointer.linkLost(new LinkError("link-lost", "gone before it was durable"));
    expect((await checkpoint).message).to.equal("gone before it was durable");
    stage.checkpointer.linkLost(new LinkError("link-lost", "nobody waits"));
    stage.checkpointer.durable(8);
  });

  it("fails when nobody says in time that it is durable", async () => {
    const time = new VirtualTime();
    const stage = new Stage({ clock: new LifeClock(time) });
    const failure = await time.until(failureOf(stage.checkpointer.checkpoint()));
    expect(failure.message).to.equal("epoch 8 is not durable after 60000 ms");
    expect(time.nowMs).to.equal(60_000);
  });

  it("does not fail when this process goes on after a stop, and finds only then that it is durable", async () => {
    const due: (() => void)[] = [];
    const after = (_ms: number, call: () => void) => {
      due.push(call);
      return () => undefined;
    };
    const stage = new Stage({ clock: { ...systemClock, after } });
    const checkpoint = stage.checkpointer.checkpoint();
    await turns();
    for (const call of due.splice(0)) call();
    await turns();
    stage.checkpointer.durable(8);
    expect(await checkpoint).to.equal(8);
  });

  it("takes one at a time, in the order they were asked for", async () => {
    const stage = new Stage();
    const [first, second] = [stage.checkpointer.checkpoint(), stage.checkpointer.checkpoint()];
    await turns();
    expect(stage.epoch).to.equal(8);
    stage.checkpointer.durable(8);
    expect(await first).to.equal(8);
    await turns();
    stage.checkpointer.durable(9);
    expect(await second).to.equal(9);
  });
});

import { expect } from "chai";

import { CopyWindow, PIECES } from "../../../src/replication/primary/copy-window.js";
import { LifeClock, VirtualTime } from "../../simulation/virtual-time.js";

const KIBIBYTE = 1024;
const MEBIBYTE = 1024 * KIBIBYTE;

/** What a link passes one request after the other. */
class ModelLink {
  readonly #time: VirtualTime;
  bytesPerSecond: number;
  roundTripMs: number;
  #freeAtMs = 0;

  constructor(time: VirtualTime, bytesPerSecond: number, roundTripMs: number) {
    this.#time = time;
    this.bytesPerSecond = bytesPerSecond;
    this.roundTripMs = roundTripMs;
  }

  /** How long a request would wait that is sent now. */
  get queueMs(): number {
    return Math.max(0, this.#freeAtMs - this.#time.nowMs);
  }

  send(lengthBytes: number): Promise<void> {
    this.#freeAtMs = this.#time.nowMs + this.queueMs + (lengthBytes / this.bytesPerSecond) * 1000;
    return this.#time.sleep(this.#freeAtMs + this.roundTripMs - this.#time.nowMs);
  }
}

describe("CopyWindow", () => {
  let time: VirtualTime;
  let window: CopyWindow;

  beforeEach(() => {
    time = new VirtualTime();
    window = new CopyWindow(new LifeClock(time));
  });

  /** Copies for so long, as a resync does. @returns bytes, and the longest queue of the second half */
  const copy = async (
    link: ModelLink,
    seconds: number,
  ): Promise<{ bytes: number; longestQueueMs: number }> => {
    const startMs = time.nowMs;
    const endMs = startMs + seconds * 1000;
    let [bytes, longestQueueMs] = [0, 0];
    const worker = async (): Promise<void> => {
      while (time.nowMs < endMs) {
        const { pieceBytes } = window;
        await window.run(pieceBytes, (send) => send(() => link.send(pieceBytes)));
        if (time.nowMs <= endMs) bytes += pieceBytes;
        if (time.nowMs > (startMs + endMs) / 2) longestQueueMs = Math.max(longestQueueMs, link.queueMs);
      }
    };
    await time.until(Promise.all(Array.from({ length: PIECES }, worker)));
    return { bytes, longestQueueMs };
  };

  for (const [bytesPerSecond, roundTripMs] of [
    [100 * KIBIBYTE, 30],
    [MEBIBYTE, 1],
    [MEBIBYTE, 100],
    [4 * MEBIBYTE, 30],
    [12 * MEBIBYTE, 10],
  ] as const) {
    const link = `${bytesPerSecond / KIBIBYTE} KiB/s, round trip ${roundTripMs} ms`;
    it(`fills a slow link, and makes guests wait little more than for one block of it: ${link}`, async () => {
      const { bytes, longestQueueMs } = await copy(new ModelLink(time, bytesPerSecond, roundTripMs), 60);
      expect(bytes / 60 / bytesPerSecond).to.be.greaterThan(0.5);
      expect(longestQueueMs).to.be.lessThan(150 + 2 * ((64 * KIBIBYTE * 1000) / bytesPerSecond));
    });
  }

  it("has 8 MiB under way on a link that is fast and long, in pieces of 256 KiB", async () => {
    const { bytes } = await copy(new ModelLink(time, 1024 * MEBIBYTE, 50), 10);
    expect(window.pieceBytes).to.equal(256 * KIBIBYTE);
    expect(bytes / 10 / MEBIBYTE).to.be.within(150, 160);
  });

  it("yields when the link becomes slow, and takes all of it again when it is fast", async () => {
    const link = new ModelLink(time, 1024 * MEBIBYTE, 1);
    await copy(link, 1);
    link.bytesPerSecond = MEBIBYTE;
    expect((await copy(link, 60)).longestQueueMs).to.be.lessThan(250);
    expect(window.pieceBytes).to.equal(64 * KIBIBYTE);
    link.bytesPerSecond = 1024 * MEBIBYTE;
    await copy(link, 1);
    expect(window.pieceBytes).to.equal(256 * KIBIBYTE);
  });

  it("takes all of a link again whose way became longer, after two minutes", async () => {
    const link = new ModelLink(time, 4 * MEBIBYTE, 10);
    await copy(link, 10);
    link.roundTripMs = 250;
    await copy(link, 120);
    expect((await copy(link, 120)).bytes / 120).to.be.greaterThan(2 * MEBIBYTE);
  });

  it("takes its own queue for no part of the way, however long it copies", async () => {
    const link = new ModelLink(time, 12 * MEBIBYTE, 10);
    expect((await copy(link, 1200)).longestQueueMs).to.be.lessThan(150);
  });

  it("shrinks once for one queue, however many pieces have stood in it", async () => {
    const link = new ModelLink(time, 1024 * MEBIBYTE, 1);
    await copy(link, 1);
    await time.until(time.sleep(100));
    const stalled = Array.from({ length: PIECES }, () =>
      window.run(256 * KIBIBYTE, (send) => send(() => time.sleep(2000))),
    );
    await time.until(Promise.all(stalled));
    expect(window.pieceBytes).to.equal(128 * KIBIBYTE);
  });

  it("doesn't grow by pieces that go one at a time: they tell nothing of a full window", async () => {
    const link = new ModelLink(time, 1024 * MEBIBYTE, 1);
    const alone = async (): Promise<void> => {
      for (let i = 0; i < 100; i++) await window.run(1, (send) => send(() => link.send(1)));
    };
    await time.until(alone());
    expect(window.pieceBytes).to.equal(64 * KIBIBYTE);
  });

  it("gives back the place of a piece that failed, and lets in one that is longer than the window", async () => {
    const link = new ModelLink(time, MEBIBYTE, 1);
    for (let i = 0; i < 20; i++) {
      const failed = window.run(64 * KIBIBYTE, () => Promise.reject(new Error("unreadable")));
      expect(await failed.catch(String)).to.equal("Error: unreadable");
    }
    await time.until(window.run(16 * MEBIBYTE, (send) => send(() => link.send(1))));
  });
});

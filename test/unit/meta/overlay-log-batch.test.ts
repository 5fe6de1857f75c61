import { expect } from "chai";

import { isPageAligned, payloadBuffers } from "../../../src/block/buffer-pool.js";
import { COPIED_MAXIMUM_BYTES, OverlayLogBatch } from "../../../src/meta/overlay-log-batch.js";
import {
  identityOf,
  type LogRecord,
  PAGE_BYTES,
  RECORD_HEADER_BYTES,
} from "../../../src/meta/overlay-log-format.js";

const IDENTITY = identityOf(Buffer.alloc(16, 7), 3);
const LONG_BYTES = 2 * COPIED_MAXIMUM_BYTES;

function content(lengthBytes: number, byte: number): Buffer {
  return payloadBuffers.take(lengthBytes).subarray(0, lengthBytes).fill(byte);
}

function dataRecord(data: Buffer): LogRecord {
  return { disk: 0, kind: "data", offset: 0, lengthBytes: data.length, data };
}

/** Lengths of content that begin and end at every place of a page. */
const LENGTHS = [1, 63, 64, 4032, 4096, 4160, 65_536, 65_600, LONG_BYTES, LONG_BYTES + 1, 70_000, LONG_BYTES];

describe("OverlayLogBatch", () => {
  let batch: OverlayLogBatch;

  beforeEach(() => {
    let sequence = 0;
    batch = new OverlayLogBatch(3 * PAGE_BYTES, IDENTITY, () => ++sequence);
  });

  it("is whole pages, in the file and in memory, whatever is in it: O_DIRECT takes no other", () => {
    // More than a buffer holds: the next one begins where a page does.
    for (let round = 0; round < 5; round++) {
      for (const [index, lengthBytes] of LENGTHS.entries())
        batch.add(dataRecord(content(lengthBytes, index)));
      batch.add({ disk: 0, kind: "zero", offset: 0, lengthBytes: 4096, data: null });
    }
    batch.close();
    const pieces = batch.finish(0);
    for (const piece of pieces)
      expect([piece.length % PAGE_BYTES, isPageAligned(piece)]).to.deep.equal([0, true]);
    expect(pieces.reduce((sum, { length }) => sum + length, 0)).to.equal(batch.lengthBytes);
    batch.release();
  });

  it("is whole pages also where long content lies in memory as no page does, or is no whole pages", () => {
    batch.add(dataRecord(content(LONG_BYTES + PAGE_BYTES, 1).subarray(64, 64 + LONG_BYTES)));
    batch.add(dataRecord(content(LONG_BYTES + 64, 2)));
    batch.close();
    for (const piece of batch.finish(0))
      expect([piece.length % PAGE_BYTES, isPageAligned(piece)]).to.deep.equal([0, true]);
    batch.release();
  });

  it("is whole pages also where the header of long content is the last of a buffer", () => {
    batch.add(dataRecord(content(256 * 1024 - 2 * RECORD_HEADER_BYTES, 1)));
    batch.add(dataRecord(content(LONG_BYTES, 2)));
    batch.close();
    expect(batch.finish(0).map(({ length }) => length)).to.deep.equal([256 * 1024, LONG_BYTES]);
    batch.release();
  });

  it("lends long content that is whole pages, and copies all else, whose buffers may change at once", () => {
    const [long, short] = [content(LONG_BYTES, 1), content(COPIED_MAXIMUM_BYTES, 2)];
    const at = [long, short].map((data) => batch.add(dataRecord(data)) - batch.startPosition);
    batch.close();
    short.fill(3);
    const pieces = batch.finish(0);
    expect(
      pieces.some((piece) => piece.buffer === long.buffer && piece.byteOffset === long.byteOffset),
    ).to.equal(true);
    const bytes = Buffer.concat(pieces);
    const found = [long, short].map((data, index) =>
      bytes.subarray(at[index], (at[index] ?? 0) + data.length),
    );
    expect(found[0]?.equals(long)).to.equal(true);
    expect(found[1]?.equals(Buffer.alloc(COPIED_MAXIMUM_BYTES, 2))).to.equal(true);
    batch.release();
  });

  it("gives its buffers back once, however often it is released", () => {
    // What the pool keeps at the start does not count.
    const takenBefore = Array.from({ length: 64 }, () => payloadBuffers.take(256 * 1024));
    const keptBytes = payloadBuffers.keptBytes;
    batch.add(dataRecord(content(COPIED_MAXIMUM_BYTES, 1)));
    batch.close();
    const piece = batch.finish(0)[0];
    batch.release();
    batch.release();
    expect(payloadBuffers.keptBytes - keptBytes).to.be.at.least(256 * 1024);
    const [one, other] = [payloadBuffers.take(256 * 1024), payloadBuffers.take(256 * 1024)];
    expect(one.buffer, "it is free again").to.equal(piece?.buffer);
    expect(other.buffer, "with one holder").to.not.equal(piece?.buffer);
    for (const buffer of takenBefore) payloadBuffers.give(buffer);
  });
});

import { expect } from "chai";

import { DeviceError } from "../../../src/errors.js";
import type { ReplyFormat } from "../../../src/nbd/client/reply-receiver.js";
import type { Request } from "../../../src/nbd/client/request.js";
import { ChunkType, Command, CommandFlag } from "../../../src/nbd/wire/constants.js";
import {
  encodeBlockStatusChunk,
  encodeErrorChunk,
  encodeErrorOffsetChunk,
  encodeOffsetHoleChunk,
} from "../../../src/nbd/wire/structured-reply.js";
import { chunk, offsetData, simpleReply } from "./scripted-server.js";
import {
  Conversation,
  DONE,
  EXTENDED,
  SIMPLE,
  STRUCTURED,
  bytes,
  cookie,
  errorPayload,
  target,
} from "./conversation.js";

/** The payload of a BLOCK_STATUS_EXT with one descriptor of 4096 bytes. */
function wideStatus(contextId: number, status: bigint): Buffer {
  const payload = Buffer.alloc(24);
  payload.writeUInt32BE(contextId, 0);
  payload.writeUInt32BE(1, 4);
  payload.writeBigUInt64BE(4096n, 8);
  payload.writeBigUInt64BE(status, 16);
  return payload;
}

/** Of base:allocation. */
function descriptorsOf(request: Request | undefined): unknown {
  return request?.status?.answers.get(7);
}

/** The answer as the caller sees it. */
function outcome(request: Request): unknown {
  return {
    error: request.error === null ? null : [request.error.errno, request.error.message],
    content: request.buffer?.toString("hex"),
    descriptors: descriptorsOf(request),
  };
}

describe("ReplyReceiver", () => {
  interface Scenario {
    readonly title: string;
    readonly format: ReplyFormat;
    readonly ask: (conversation: Conversation) => void;
    readonly replies: readonly Buffer[];
    readonly order: readonly number[];
    readonly check: (requests: readonly Request[]) => void;
  }

  const scenarios: Scenario[] = [
    {
      title: "simple replies to reads, writes and a flush, out of order",
      format: SIMPLE,
      ask: (c) => {
        c.ask(Command.Read, 4096, 100);
        c.ask(Command.Write, 0, 10);
        c.ask(Command.Flush, 0, 0);
        c.ask(Command.Read, 0, 33);
      },
      replies: [
        simpleReply(cookie(4), 0, bytes(33, 4)),
        simpleReply(cookie(2), 0),
        simpleReply(cookie(1), 0, bytes(100, 1)),
        simpleReply(cookie(3), 0),
      ],
      order: [4, 2, 1, 3],
      check: ([first, , , fourth]) => {
        expect(first?.buffer).to.deep.equal(bytes(100, 1));
        expect(fourth?.buffer).to.deep.equal(bytes(33, 4));
      },
    },
    {
      title: "simple errors, also to a read, which then has no content",
      format: SIMPLE,
      ask: (c) => {
        c.ask(Command.Read, 0, 16);
        c.ask(Command.Write, 512, 16);
        c.ask(Command.Trim, 0, 16);
      },
      replies: [simpleReply(cookie(1), 5), simpleReply(cookie(2), 28), simpleReply(cookie(3), 4711)],
      order: [1, 2, 3],
      check: (requests) => {
        expect(requests.map((request) => request.error?.errno)).to.deep.equal(["EIO", "ENOSPC", "EINVAL"]);
        expect(requests[1]?.error).to.be.instanceOf(DeviceError);
        expect(requests[1]?.error?.message).to.equal(
          "the NBD server fails a write of 16 bytes at 512: ENOSPC",
        );
      },
    },
    {
      title: "a read in chunks in any order, content and holes, ended by an empty chunk",
      format: STRUCTURED,
      ask: (c) => {
        c.ask(Command.Read, 1000, 100);
      },
      replies: [
        offsetData(cookie(1), 0, 1060, bytes(40, 3)),
        encodeOffsetHoleChunk(cookie(1), 0, 1010, 50),
        offsetData(cookie(1), 0, 1000, bytes(10, 5)),
        chunk(cookie(1), DONE, ChunkType.None),
      ],
      order: [1],
      check: ([request]) => {
        expect(request?.error).to.equal(null);
        expect(request?.buffer).to.deep.equal(Buffer.concat([bytes(10, 5), Buffer.alloc(50), bytes(40, 3)]));
      },
    },
    {
      title: "chunks of several requests interleaved, the last chunk being content or a hole",
      format: STRUCTURED,
      ask: (c) => {
        c.ask(Command.Read, 0, 20);
        c.ask(Command.Read, 5000, 20);
        c.ask(Command.Write, 0, 5);
      },
      replies: [
        offsetData(cookie(1), 0, 0, bytes(10, 1)),
        encodeOffsetHoleChunk(cookie(2), 0, 5000, 10),
        simpleReply(cookie(3), 0),
        offsetData(cookie(2), DONE, 5010, bytes(10, 2)),
        encodeOffsetHoleChunk(cookie(1), DONE, 10, 10),
      ],
      order: [3, 2, 1],
      check: ([first, second]) => {
        expect(first?.buffer).to.deep.equal(Buffer.concat([bytes(10, 1), Buffer.alloc(10)]));
        expect(second?.buffer).to.deep.equal(Buffer.concat([Buffer.alloc(10), bytes(10, 2)]));
      },
    },
    {
      title: "error chunks with text and offset; the first of several tells",
      format: STRUCTURED,
      ask: (c) => {
        c.ask(Command.Read, 4096, 512);
        c.ask(Command.Write, 0, 512);
        c.ask(Command.Flush, 0, 0);
        c.ask(Command.Trim, 0, 512);
      },
      replies: [
        offsetData(cookie(1), 0, 4096, bytes(256, 1)),
        encodeErrorOffsetChunk(cookie(1), 0, 5, "bad sector", 4200),
        encodeErrorChunk(cookie(1), 0, 12, "second"),
        chunk(cookie(1), DONE, ChunkType.None),
        encodeErrorChunk(cookie(2), DONE, 1, "read\u001b[31m-only\n"),
        encodeErrorChunk(cookie(3), DONE, 108, ""),
        // A type of the future: an error all the same.
        chunk(cookie(4), DONE, 0x8fff, Buffer.concat([errorPayload(28, 4, "full"), bytes(20, 0)])),
      ],
      order: [1, 2, 3, 4],
      check: (requests) => {
        expect(requests.map((request) => request.error?.message)).to.deep.equal([
          "the NBD server fails a read of 512 bytes at 4096: EIO, bad sector (at offset 4200)",
          "the NBD server fails a write of 512 bytes at 0: EPERM, read?[31m-only?",
          "the NBD server fails a flush: ESHUTDOWN",
          "the NBD server fails a trim of 512 bytes at 0: ENOSPC, full",
        ]);
        expect(requests.map((request) => request.error?.offset)).to.deep.equal([4200, null, null, null]);
      },
    },
    {
      title: "extents, clipped to the range and to the number asked for",
      format: STRUCTURED,
      ask: (c) => {
        c.ask(Command.BlockStatus, 0, 1000);
        c.ask(Command.BlockStatus, 0, 1000, { maxExtents: 2 });
        c.ask(Command.BlockStatus, 0, 1000, { flags: CommandFlag.ReqOne, maxExtents: 1 });
        c.ask(Command.BlockStatus, 0, 1000);
      },
      replies: [
        encodeBlockStatusChunk(cookie(1), 0, 7, [
          { lengthBytes: 100, status: 0 },
          { lengthBytes: 200, status: 3 },
          { lengthBytes: 0xffffffff, status: 0xf2 },
        ]),
        chunk(cookie(1), DONE, ChunkType.None),
        encodeBlockStatusChunk(cookie(2), DONE, 7, [
          { lengthBytes: 1, status: 1 },
          { lengthBytes: 2, status: 2 },
          { lengthBytes: 3, status: 3 },
        ]),
        encodeBlockStatusChunk(cookie(3), DONE, 7, [{ lengthBytes: 1000, status: 0 }]),
        simpleReply(cookie(4), 22),
      ],
      order: [1, 2, 3, 4],
      check: ([all, two, one, failed]) => {
        expect(descriptorsOf(all)).to.deep.equal([
          { lengthBytes: 100, status: 0 },
          { lengthBytes: 200, status: 3 },
          { lengthBytes: 700, status: 0xf2 },
        ]);
        expect(descriptorsOf(two)).to.deep.equal([
          { lengthBytes: 1, status: 1 },
          { lengthBytes: 2, status: 2 },
        ]);
        expect(descriptorsOf(one)).to.deep.equal([{ lengthBytes: 1000, status: 0 }]);
        expect(failed?.error?.errno).to.equal("EINVAL");
      },
    },
    {
      title: "the descriptors of the context that was asked about, among those of others",
      format: { ...STRUCTURED, contexts: new Map([...STRUCTURED.contexts, ["qemu:dirty-bitmap:b", 9]]) },
      ask: (c) => {
        c.ask(Command.BlockStatus, 0, 1000);
        c.ask(Command.BlockStatus, 0, 1000);
      },
      replies: [
        encodeBlockStatusChunk(cookie(1), 0, 9, [{ lengthBytes: 1000, status: 1 }]),
        encodeBlockStatusChunk(cookie(1), DONE, 7, [{ lengthBytes: 500, status: 3 }]),
        encodeBlockStatusChunk(cookie(2), 0, 7, [{ lengthBytes: 400, status: 0 }]),
        encodeBlockStatusChunk(cookie(2), DONE, 9, [{ lengthBytes: 1000, status: 1 }]),
      ],
      order: [1, 2],
      check: ([first, second]) => {
        expect(descriptorsOf(first)).to.deep.equal([{ lengthBytes: 500, status: 3 }]);
        expect(descriptorsOf(second)).to.deep.equal([{ lengthBytes: 400, status: 0 }]);
      },
    },
    {
      title: "what several contexts tell, each on its own, with statuses of 64 bits outside of base:",
      format: { ...EXTENDED, contexts: new Map([...EXTENDED.contexts, ["x-wide:w", 9]]) },
      ask: (c) => {
        c.ask(Command.BlockStatus, 4096, 2 ** 40, { contextIds: [7, 9] });
        c.ask(Command.BlockStatus, 4096, 2 ** 40, { contextIds: [9], isFiltered: true });
        c.ask(Command.BlockStatus, 4096, 2 ** 40, { contextIds: [9], isFiltered: true });
      },
      replies: [
        encodeBlockStatusChunk(target(1, 4096), 0, 9, [{ lengthBytes: 2 ** 41, status: 2 ** 52 + 1 }]),
        encodeBlockStatusChunk(target(2, 4096), DONE, 9, [{ lengthBytes: 2 ** 33, status: 5 }]),
        encodeBlockStatusChunk(target(1, 4096), DONE, 7, [{ lengthBytes: 2 ** 35, status: 3 }]),
        chunk(target(3, 4096), DONE, ChunkType.BlockStatusExt, wideStatus(9, 2n ** 53n)),
      ],
      order: [2, 1, 3],
      check: ([both, one, tooWide]) => {
        expect(both?.status?.answers).to.deep.equal(
          new Map([
            [9, [{ lengthBytes: 2 ** 40, status: 2 ** 52 + 1 }]],
            [7, [{ lengthBytes: 2 ** 35, status: 3 }]],
          ]),
        );
        expect(one?.status?.answers).to.deep.equal(new Map([[9, [{ lengthBytes: 2 ** 33, status: 5 }]]]));
        expect(tooWide?.error?.errno).to.equal("EOVERFLOW");
        expect(tooWide?.error?.message).to.include(`a status of x-wide:w`);
      },
    },
    {
      title: "extended replies to requests of all kinds, interleaved",
      format: EXTENDED,
      ask: (c) => {
        c.ask(Command.Read, 2 ** 41, 20);
        c.ask(Command.Write, 4096, 5);
        c.ask(Command.BlockStatus, 0, 2 ** 40);
        c.ask(Command.Flush, 0, 0);
        c.ask(Command.Trim, 2 ** 33, 2 ** 40);
      },
      replies: [
        offsetData(target(1, 2 ** 41), 0, 2 ** 41, bytes(10, 1)),
        chunk(target(2, 4096), DONE, ChunkType.None),
        encodeBlockStatusChunk(target(3, 0), DONE, 7, [
          { lengthBytes: 2 ** 33, status: 3 },
          { lengthBytes: 2 ** 41, status: 0 },
        ]),
        encodeErrorOffsetChunk(target(5, 2 ** 33), DONE, 5, "bad", 2 ** 34),
        encodeOffsetHoleChunk(target(1, 2 ** 41), DONE, 2 ** 41 + 10, 10),
        encodeErrorChunk(target(4, 0), DONE, 108, "bye"),
      ],
      order: [2, 3, 5, 1, 4],
      check: ([read, , status, flush, trim]) => {
        expect(read?.buffer).to.deep.equal(Buffer.concat([bytes(10, 1), Buffer.alloc(10)]));
        expect(descriptorsOf(status)).to.deep.equal([
          { lengthBytes: 2 ** 33, status: 3 },
          { lengthBytes: 2 ** 40 - 2 ** 33, status: 0 },
        ]);
        expect(flush?.error?.errno).to.equal("ESHUTDOWN");
        expect(trim?.error?.message).to.contain(`at offset ${2 ** 34}`);
      },
    },
  ];

  for (const { title, format, ask, replies, order, check } of scenarios) {
    it(`reads ${title}`, () => {
      const conversation = new Conversation(format);
      ask(conversation);
      conversation.push(Buffer.concat(replies));
      expect(conversation.answered).to.deep.equal(order);
      check(conversation.requests);
    });

    it(`reads the same wherever the stream is cut: ${title}`, () => {
      const stream = Buffer.concat(replies);
      const whole = new Conversation(format);
      ask(whole);
      whole.push(stream);
      const expected = whole.requests.map(outcome);
      const pieces = (cut: (i: number) => Buffer[]): void => {
        for (let i = 0; i <= stream.length; i++) {
          const conversation = new Conversation(format);
          ask(conversation);
          conversation.push(...cut(i));
          expect(conversation.answered, `cut at ${i}`).to.deep.equal(order);
          expect(conversation.requests.map(outcome), `cut at ${i}`).to.deep.equal(expected);
        }
      };
      pieces((i) => [stream.subarray(0, i), stream.subarray(i)]);
      const single = new Conversation(format);
      ask(single);
      for (const byte of stream) single.push(Buffer.of(byte));
      expect(single.requests.map(outcome)).to.deep.equal(expected);
    });
  }

  it("doesn't answer a request before the last byte of its reply", () => {
    const conversation = new Conversation(STRUCTURED);
    conversation.ask(Command.Read, 0, 8);
    const stream = offsetData(cookie(1), DONE, 0, bytes(8, 1));
    for (const byte of stream) {
      expect(conversation.answered).to.deep.equal([]);
      conversation.push(Buffer.of(byte));
    }
    expect(conversation.answered).to.deep.equal([1]);
  });

  it("fails a read by a simple error although chunks were agreed on: clear enough, and some servers do it", () => {
    const conversation = new Conversation(STRUCTURED);
    const request = conversation.ask(Command.Read, 4096, 64);
    conversation.push(simpleReply(cookie(1), 22));
    expect(request.error?.errno).to.equal("EINVAL");
    expect(conversation.answered).to.deep.equal([1]);
  });
});

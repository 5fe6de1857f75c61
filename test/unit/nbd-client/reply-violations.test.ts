import { expect } from "chai";

import { ProtocolError } from "../../../src/errors.js";
import type { ReplyFormat } from "../../../src/nbd/client/reply-receiver.js";
import type { Request } from "../../../src/nbd/client/request.js";
import { ChunkType, Command, CommandFlag } from "../../../src/nbd/wire/constants.js";
import {
  encodeBlockStatusChunk,
  encodeErrorChunk,
  encodeErrorOffsetChunk,
  encodeOffsetHoleChunk,
} from "../../../src/nbd/wire/structured-reply.js";
import { NO_DATA, chunk, offsetData, simpleReply } from "./scripted-server.js";
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

describe("ReplyReceiver", () => {
  const READ = (c: Conversation): Request => c.ask(Command.Read, 4096, 64);
  const READ_WHOLE = (c: Conversation): Request => c.ask(Command.Read, 4096, 64, { flags: CommandFlag.Df });
  const WRITE = (c: Conversation): Request => c.ask(Command.Write, 4096, 64);
  const STATUS = (c: Conversation): Request => c.ask(Command.BlockStatus, 4096, 64);
  const STATUS_ONE = (c: Conversation): Request =>
    c.ask(Command.BlockStatus, 4096, 64, { flags: CommandFlag.ReqOne });
  const STATUS_NAMED = (c: Conversation): Request =>
    c.ask(Command.BlockStatus, 4096, 64, { isFiltered: true });
  const TWO_CONTEXTS = new Map([...STRUCTURED.contexts, ["qemu:dirty-bitmap:b", 9]]);
  const AT = target(1, 4096);
  /** The payload of a BLOCK_STATUS_EXT: words of 32 bits. */
  const words = (...values: number[]): Buffer => {
    const payload = Buffer.alloc(4 * values.length);
    for (const [index, value] of values.entries()) payload.writeUInt32BE(value, 4 * index);
    return payload;
  };
  const statusExt = (...values: number[]): Buffer =>
    chunk(AT, DONE, ChunkType.BlockStatusExt, words(...values));
  const violations: [string, ReplyFormat, (c: Conversation) => Request, Buffer, string][] = [
    ["a wrong magic", SIMPLE, READ, Buffer.from("HTTP/1.1 400 Bad"), "bad-reply-magic"],
    ["a wrong magic where structured", STRUCTURED, READ, Buffer.alloc(20), "bad-reply-magic"],
    ["an unknown cookie", SIMPLE, READ, simpleReply(cookie(9), 0), "unknown-cookie"],
    ["an unknown cookie of a chunk", STRUCTURED, READ, chunk(cookie(9), DONE, 0), "unknown-cookie"],
    [
      "a second answer",
      SIMPLE,
      WRITE,
      Buffer.concat([simpleReply(cookie(1), 0), simpleReply(cookie(1), 0)]),
      "unknown-cookie",
    ],
    [
      "content behind the answer",
      SIMPLE,
      WRITE,
      simpleReply(cookie(1), 0, Buffer.alloc(64)),
      "bad-reply-magic",
    ],
    ["a chunk where none were agreed on", SIMPLE, WRITE, chunk(cookie(1), DONE, 0), "structured-reply"],
    ["a simple reply to a read", STRUCTURED, READ, simpleReply(cookie(1), 0), "simple-reply"],
    ["a simple reply to a block status", STRUCTURED, STATUS, simpleReply(cookie(1), 0), "simple-reply"],
    ["an empty chunk that isn't the last", STRUCTURED, WRITE, chunk(cookie(1), 0, 0), "misplaced-chunk"],
    [
      "an empty chunk with payload",
      STRUCTURED,
      WRITE,
      chunk(cookie(1), DONE, 0, bytes(1, 0)),
      "misplaced-chunk",
    ],
    ["an unknown type of chunk", STRUCTURED, READ, chunk(cookie(1), 0, 4), "unknown-chunk-type"],
    [
      "content for a write",
      STRUCTURED,
      WRITE,
      offsetData(cookie(1), DONE, 4096, bytes(64, 0)),
      "misplaced-chunk",
    ],
    [
      "a hole for a write",
      STRUCTURED,
      WRITE,
      encodeOffsetHoleChunk(cookie(1), DONE, 4096, 64),
      "misplaced-chunk",
    ],
    [
      "extents for a read",
      STRUCTURED,
      READ,
      encodeBlockStatusChunk(cookie(1), DONE, 7, [{ lengthBytes: 64, status: 0 }]),
      "misplaced-chunk",
    ],
    ["content of no length", STRUCTURED, READ, offsetData(cookie(1), 0, 4096, NO_DATA), "misplaced-chunk"],
    ["content without an offset", STRUCTURED, READ, chunk(cookie(1), 0, 1, bytes(3, 0)), "misplaced-chunk"],
    [
      "more content than asked for",
      STRUCTURED,
      READ,
      offsetData(cookie(1), 0, 4096, bytes(65, 0)),
      "misplaced-chunk",
    ],
    [
      "content before the range",
      STRUCTURED,
      READ,
      offsetData(cookie(1), 0, 4095, bytes(2, 0)),
      "chunk-out-of-range",
    ],
    [
      "content past the range",
      STRUCTURED,
      READ,
      offsetData(cookie(1), 0, 4159, bytes(2, 0)),
      "chunk-out-of-range",
    ],
    [
      "content at 2^64-1",
      STRUCTURED,
      READ,
      chunk(cookie(1), 0, 1, Buffer.alloc(9, 0xff)),
      "chunk-out-of-range",
    ],
    [
      "a hole past the range",
      STRUCTURED,
      READ,
      encodeOffsetHoleChunk(cookie(1), 0, 4096, 65),
      "chunk-out-of-range",
    ],
    [
      "two pieces of a read that was to come in one",
      STRUCTURED,
      READ_WHOLE,
      Buffer.concat([
        offsetData(cookie(1), 0, 4096, bytes(32, 0)),
        offsetData(cookie(1), DONE, 4128, bytes(32, 0)),
      ]),
      "fragmented-read",
    ],
    [
      "a hole of no length",
      STRUCTURED,
      READ,
      encodeOffsetHoleChunk(cookie(1), 0, 4096, 0),
      "malformed-chunk",
    ],
    ["a hole of wrong size", STRUCTURED, READ, chunk(cookie(1), 0, 2, Buffer.alloc(11)), "misplaced-chunk"],
    [
      "content twice",
      STRUCTURED,
      READ,
      Buffer.concat([
        offsetData(cookie(1), 0, 4096, bytes(9, 0)),
        encodeOffsetHoleChunk(cookie(1), 0, 4104, 9),
      ]),
      "chunk-overlap",
    ],
    ["success without content", STRUCTURED, READ, chunk(cookie(1), DONE, 0), "incomplete-reply"],
    [
      "success with a gap",
      STRUCTURED,
      READ,
      offsetData(cookie(1), DONE, 4097, bytes(63, 0)),
      "incomplete-reply",
    ],
    [
      "an error chunk of error 0",
      STRUCTURED,
      WRITE,
      encodeErrorChunk(cookie(1), DONE, 0, ""),
      "malformed-chunk",
    ],
    [
      "an error chunk too short",
      STRUCTURED,
      WRITE,
      chunk(cookie(1), DONE, 0x8001, Buffer.alloc(5)),
      "malformed-chunk",
    ],
    ["an error chunk that is empty", STRUCTURED, WRITE, chunk(cookie(1), DONE, 0x8001), "malformed-chunk"],
    [
      "an error message longer than its chunk",
      STRUCTURED,
      WRITE,
      chunk(cookie(1), DONE, 0x8001, errorPayload(5, 10, "short")),
      "malformed-chunk",
    ],
    [
      "an error message over 4096 bytes",
      STRUCTURED,
      WRITE,
      chunk(cookie(1), DONE, 0x8001, errorPayload(5, 4097, "x".repeat(4097))),
      "string-too-long",
    ],
    [
      "an error chunk of any length",
      STRUCTURED,
      WRITE,
      chunk(cookie(1), DONE, 0x8001, Buffer.alloc(70_000)),
      "misplaced-chunk",
    ],
    [
      "an error outside of the range",
      STRUCTURED,
      READ,
      encodeErrorOffsetChunk(cookie(1), DONE, 5, "", 4160),
      "error-out-of-range",
    ],
    [
      "extents of a context never selected",
      STRUCTURED,
      STATUS,
      encodeBlockStatusChunk(cookie(1), DONE, 8, [{ lengthBytes: 64, status: 0 }]),
      "unexpected-meta-context",
    ],
    [
      "extents twice",
      STRUCTURED,
      STATUS,
      Buffer.concat(
        [1, 2].map(() => encodeBlockStatusChunk(cookie(1), 0, 7, [{ lengthBytes: 64, status: 0 }])),
      ),
      "unexpected-meta-context",
    ],
    [
      "extents of a context that nobody asked about, twice",
      { ...STRUCTURED, contexts: TWO_CONTEXTS },
      STATUS,
      Buffer.concat(
        [1, 2].map(() => encodeBlockStatusChunk(cookie(1), 0, 9, [{ lengthBytes: 64, status: 0 }])),
      ),
      "unexpected-meta-context",
    ],
    [
      "extents of a context besides those that the request names",
      { ...EXTENDED, contexts: TWO_CONTEXTS },
      STATUS_NAMED,
      encodeBlockStatusChunk(AT, 0, 9, [{ lengthBytes: 64, status: 0 }]),
      "unexpected-meta-context",
    ],
    [
      "extents of one of two contexts that were asked about",
      { ...STRUCTURED, contexts: TWO_CONTEXTS },
      (c) => c.ask(Command.BlockStatus, 4096, 64, { contextIds: [7, 9] }),
      encodeBlockStatusChunk(cookie(1), DONE, 7, [{ lengthBytes: 64, status: 0 }]),
      "incomplete-reply",
    ],
    [
      "no extents at all",
      STRUCTURED,
      STATUS,
      chunk(cookie(1), DONE, 5, Buffer.of(0, 0, 0, 7)),
      "malformed-chunk",
    ],
    [
      "half an extent",
      STRUCTURED,
      STATUS,
      chunk(cookie(1), DONE, 5, Buffer.of(0, 0, 0, 7, 0, 0, 0, 1)),
      "malformed-chunk",
    ],
    [
      "an extent of no length",
      STRUCTURED,
      STATUS,
      encodeBlockStatusChunk(cookie(1), DONE, 7, [{ lengthBytes: 0, status: 0 }]),
      "malformed-chunk",
    ],
    [
      "extents past the range",
      STRUCTURED,
      STATUS,
      encodeBlockStatusChunk(cookie(1), DONE, 7, [
        { lengthBytes: 64, status: 0 },
        { lengthBytes: 1, status: 0 },
      ]),
      "too-many-extents",
    ],
    [
      "two extents where one was asked for",
      STRUCTURED,
      STATUS_ONE,
      encodeBlockStatusChunk(cookie(1), DONE, 7, [
        { lengthBytes: 1, status: 0 },
        { lengthBytes: 1, status: 0 },
      ]),
      "too-many-extents",
    ],
    ["a block status without extents", STRUCTURED, STATUS, chunk(cookie(1), DONE, 0), "incomplete-reply"],
    ["an extended reply where none was agreed on", STRUCTURED, WRITE, chunk(AT, DONE, 0), "extended-reply"],
    ["a simple reply where extended", EXTENDED, WRITE, simpleReply(cookie(1), 0), "simple-reply"],
    ["a simple error where extended", EXTENDED, WRITE, simpleReply(cookie(1), 5), "simple-reply"],
    ["a compact chunk where extended", EXTENDED, WRITE, chunk(cookie(1), DONE, 0), "structured-reply"],
    ["an extended reply to another offset", EXTENDED, WRITE, chunk(target(1, 4097), DONE, 0), "wrong-offset"],
    [
      "an extended reply to offset 2^64-1",
      EXTENDED,
      WRITE,
      chunk({ ...AT, offsetHigh: 0xffffffff }, DONE, 0),
      "wrong-offset",
    ],
    [
      "compact extents where extended",
      EXTENDED,
      STATUS,
      chunk(AT, DONE, ChunkType.BlockStatus, words(7, 64, 0)),
      "misplaced-chunk",
    ],
    [
      "extended extents where compact",
      STRUCTURED,
      STATUS,
      chunk(cookie(1), DONE, ChunkType.BlockStatusExt, words(7, 1, 0, 64, 0, 0)),
      "misplaced-chunk",
    ],
    ["extended extents cut short", EXTENDED, STATUS, statusExt(7), "misplaced-chunk"],
    ["extended extents, none at all", EXTENDED, STATUS, statusExt(7, 0), "malformed-chunk"],
    ["extended extents, miscounted", EXTENDED, STATUS, statusExt(7, 2, 0, 64, 0, 0), "malformed-chunk"],
    ["half an extended extent", EXTENDED, STATUS, statusExt(7, 1, 0, 64), "malformed-chunk"],
    ["an extended extent of no length", EXTENDED, STATUS, statusExt(7, 1, 0, 0, 0, 0), "malformed-chunk"],
    [
      "a status of base:allocation over 32 bits",
      EXTENDED,
      STATUS,
      statusExt(7, 1, 0, 64, 1, 0),
      "malformed-chunk",
    ],
    [
      "extended extents past the range",
      EXTENDED,
      STATUS,
      statusExt(7, 2, 0xffffffff, 0xffffffff, 0, 0, 0, 1, 0, 0),
      "too-many-extents",
    ],
  ];
  for (const [title, format, ask, stream, code] of violations) {
    it(`refuses ${title} as ${code}, byte by byte`, () => {
      const conversation = new Conversation(format);
      ask(conversation);
      expect(() => {
        for (const byte of stream) conversation.push(Buffer.of(byte));
      })
        .to.throw(ProtocolError)
        .with.property("code", code);
    });
  }

  it("refuses an extended reply of 2^64-1 bytes by its header, whatever it answers", () => {
    for (const [ask, type] of [
      [READ, ChunkType.OffsetData],
      [READ, ChunkType.OffsetHole],
      [STATUS, ChunkType.BlockStatusExt],
      [WRITE, ChunkType.None],
      [WRITE, ChunkType.Error],
    ] as const) {
      const conversation = new Conversation(EXTENDED);
      ask(conversation);
      const header = chunk(AT, DONE, type);
      header.fill(0xff, 24, 32);
      expect(() => {
        conversation.push(header);
      }, `type ${type}`)
        .to.throw(ProtocolError)
        .with.property("code", "misplaced-chunk");
    }
  });

  it("refuses a block status chunk of more than 2^20 extents by its header", () => {
    const conversation = new Conversation(STRUCTURED);
    STATUS(conversation);
    const header = chunk(cookie(1), DONE, ChunkType.BlockStatus);
    header.writeUInt32BE(4 + 8 * (2 ** 20 + 1), 16);
    expect(() => {
      conversation.push(header);
    })
      .to.throw(ProtocolError)
      .with.property("code", "misplaced-chunk");
  });
});

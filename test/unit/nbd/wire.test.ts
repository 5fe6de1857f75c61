import { expect } from "chai";

import { ProtocolError } from "../../../src/errors.js";
import {
  ChunkFlag,
  ChunkType,
  Command,
  InfoType,
  Option,
  OptionReplyType,
} from "../../../src/nbd/wire/constants.js";
import { errnoOfNumber, errorNumberOf } from "../../../src/nbd/wire/error-number.js";
import {
  decodeClientFlags,
  decodeExportNameReply,
  decodeGreeting,
  encodeClientFlags,
  encodeExportNameReply,
  encodeGreeting,
} from "../../../src/nbd/wire/handshake.js";
import {
  decodeInfoRequest,
  decodeMetaContextRequest,
  decodeOptionHeader,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
} from "../../../src/nbd/wire/option.js";
import type { InfoItem } from "../../../src/nbd/wire/option-reply.js";
import {
  decodeInfoItem,
  decodeMetaContext,
  decodeOptionReplyHeader,
  decodeServerEntry,
  encodeInfoItem,
  encodeMetaContext,
  encodeOptionReply,
  encodeList,
  encodeServerEntry,
} from "../../../src/nbd/wire/option-reply.js";
import { readRequestHeader, writeRequestHeader } from "../../../src/nbd/wire/request.js";
import { readSimpleReplyHeader, writeSimpleReplyHeader } from "../../../src/nbd/wire/simple-reply.js";
import { decodeString, encodeMessage } from "../../../src/nbd/wire/strings.js";
import {
  CHUNK_HEADER_BYTES,
  decodeBlockStatus,
  decodeErrorChunk,
  decodeOffsetHole,
  encodeBlockStatusChunk,
  encodeErrorChunk,
  encodeErrorOffsetChunk,
  encodeOffsetHoleChunk,
  readChunkHeader,
  readOffsetDataPrefix,
  writeOffsetDataHeader,
} from "../../../src/nbd/wire/structured-reply.js";
import { UINT64_TOO_LARGE, readUint64, writeUint64 } from "../../../src/nbd/wire/uint64.js";

const COOKIE = { cookieHigh: 0xfedc_ba98, cookieLow: 0x7654_3210 };
const NAME = "dísk 0";

const hex = (bytes: Buffer): string => bytes.toString("hex");
const codeOf = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    if (error instanceof ProtocolError) return error.code;
    throw error;
  }
  return "no error";
};
/** Decodes each proper beginning of `bytes`; all have to be refused, and as malformed. */
const expectCutsRefused = (bytes: Buffer, code: string, decode: (cut: Buffer) => unknown): void => {
  for (let end = 0; end < bytes.length; end++) {
    expect(
      codeOf(() => decode(bytes.subarray(0, end))),
      `cut at ${end}`,
    ).to.equal(code);
  }
};

describe("wire: 64-bit numbers", () => {
  for (const [value, text] of [
    [0, "0000000000000000"],
    [0xffff_ffff, "00000000ffffffff"],
    [0x1_0000_0000, "0000000100000000"],
    [Number.MAX_SAFE_INTEGER, "001fffffffffffff"],
  ] as const) {
    it(`writes and reads ${value}`, () => {
      const bytes = Buffer.alloc(8);
      writeUint64(bytes, 0, value);
      expect(hex(bytes)).to.equal(text);
      expect(readUint64(bytes, 0)).to.equal(value);
    });
  }

  it("reads what a number can't hold as too large", () => {
    for (const text of ["0020000000000000", "7fffffffffffffff", "8000000000000000", "ffffffffffffffff"]) {
      expect(readUint64(Buffer.from(text, "hex"), 0)).to.equal(UINT64_TOO_LARGE);
    }
  });
});

describe("wire: strings", () => {
  it("takes UTF-8 of up to 4096 bytes and keeps a byte order mark", () => {
    expect(decodeString(Buffer.from(NAME))).to.equal(NAME);
    expect(decodeString(Buffer.from("\uFEFFx"))).to.equal("\uFEFFx");
    expect(decodeString(Buffer.alloc(4096, "x"))).to.equal("x".repeat(4096));
  });

  for (const [code, bytes] of [
    ["string-too-long", Buffer.alloc(4097, "x")],
    ["string-has-nul", Buffer.from("a\0b")],
    ["string-not-utf8", Buffer.from([0xc3])],
    ["string-not-utf8", Buffer.from([0xed, 0xa0, 0x80])],
  ] as const) {
    it(`refuses ${hex(bytes.subarray(0, 3))}… with ${code}`, () => {
      expect(codeOf(() => decodeString(bytes))).to.equal(code);
    });
  }

  it("cuts our own messages at a character", () => {
    expect(encodeMessage("short").toString()).to.equal("short");
    expect(encodeMessage("a\0b").toString()).to.equal("ab");
    expect(encodeMessage("x" + "é".repeat(4096)).toString()).to.equal("x" + "é".repeat(2047));
  });
});

describe("wire: handshake", () => {
  it("writes and reads the greeting", () => {
    const bytes = encodeGreeting(3);
    expect(hex(bytes)).to.equal("4e42444d4147494349484156454f50540003");
    expect(decodeGreeting(bytes)).to.equal(3);
  });

  it("tells an oldstyle server and a stranger from an NBD server", () => {
    const oldstyle = Buffer.from("4e42444d41474943" + "0000420281861253" + "0000", "hex");
    expect(codeOf(() => decodeGreeting(oldstyle))).to.equal("oldstyle-server");
    for (let at = 0; at < 16; at++) {
      const damaged = encodeGreeting(3);
      damaged.writeUInt8(damaged.readUInt8(at) ^ 0x80, at);
      expect(codeOf(() => decodeGreeting(damaged))).to.equal("not-nbd");
    }
  });

  it("writes and reads client flags and the reply to EXPORT_NAME", () => {
    expect(decodeClientFlags(encodeClientFlags(0x8000_0001))).to.equal(0x8000_0001);
    const geometry = { sizeBytes: 2 ** 40 + 1, transmissionFlags: 0xabcd };
    const bytes = encodeExportNameReply(geometry, true);
    expect(hex(bytes)).to.equal("0000010000000001abcd");
    expect(decodeExportNameReply(bytes)).to.deep.equal(geometry);
    const padded = encodeExportNameReply(geometry, false);
    expect(padded.equals(Buffer.concat([bytes, Buffer.alloc(124)]))).to.be.true;
  });
});

describe("wire: options", () => {
  it("writes and reads an option", () => {
    const bytes = encodeOption(Option.Go, Buffer.from("ab"));
    expect(hex(bytes)).to.equal("49484156454f5054" + "00000007" + "00000002" + "6162");
    expect(decodeOptionHeader(bytes)).to.deep.equal({ option: 7, lengthBytes: 2 });
    expect(codeOf(() => decodeOptionHeader(Buffer.alloc(16)))).to.equal("bad-option-magic");
  });

  it("writes and reads the data of INFO and GO, and refuses each cut of it", () => {
    const request = { exportName: NAME, infoTypes: [InfoType.BlockSize, 0xffff] };
    const data = encodeInfoRequest(request);
    expect(hex(data)).to.equal("00000007" + hex(Buffer.from(NAME)) + "0002" + "0003" + "ffff");
    expect(decodeInfoRequest(data)).to.deep.equal(request);
    expectCutsRefused(data, "malformed-option", decodeInfoRequest);
    expect(codeOf(() => decodeInfoRequest(Buffer.concat([data, Buffer.alloc(1)])))).to.equal(
      "malformed-option",
    );
  });

  it("writes and reads the data of meta context options, and refuses each cut of them", () => {
    const request = { exportName: NAME, queries: ["base:", "", "x-y:z"] };
    const data = encodeMetaContextRequest(request);
    expect(decodeMetaContextRequest(data)).to.deep.equal(request);
    expectCutsRefused(data, "malformed-option", decodeMetaContextRequest);
    const surplus = Buffer.concat([data, Buffer.alloc(1)]);
    expect(codeOf(() => decodeMetaContextRequest(surplus))).to.equal("malformed-option");
    const lying = Buffer.from(data);
    lying.writeUInt32BE(0xffff_ffff, 0);
    expect(codeOf(() => decodeMetaContextRequest(lying))).to.equal("malformed-option");
  });
});

describe("wire: option replies", () => {
  it("writes and reads a reply", () => {
    const bytes = encodeOptionReply(Option.Info, OptionReplyType.ErrUnknown, Buffer.from("no"));
    expect(hex(bytes)).to.equal("0003e889045565a9" + "00000006" + "80000006" + "00000002" + "6e6f");
    expect(decodeOptionReplyHeader(bytes)).to.deep.equal({ option: 6, type: 0x8000_0006, lengthBytes: 2 });
    expect(codeOf(() => decodeOptionReplyHeader(Buffer.alloc(20)))).to.equal("bad-option-reply-magic");
  });

  it("writes and reads NBD_REP_SERVER, and refuses cuts inside the name", () => {
    const entry = { exportName: NAME, description: "first" };
    const data = encodeServerEntry(entry);
    expect(decodeServerEntry(data)).to.deep.equal(entry);
    expectCutsRefused(
      data.subarray(0, 4 + Buffer.byteLength(NAME)),
      "malformed-option-reply",
      decodeServerEntry,
    );
  });

  it("writes the answer to NBD_OPT_LIST as its replies one after the other", () => {
    const entries = [
      { exportName: NAME, description: "first" },
      { exportName: "", description: "\u00fc" },
    ];
    const replies = entries.map((entry) =>
      encodeOptionReply(Option.List, OptionReplyType.Server, encodeServerEntry(entry)),
    );
    const end = encodeOptionReply(Option.List, OptionReplyType.Ack, Buffer.alloc(0));
    expect(hex(encodeList(entries))).to.equal(hex(Buffer.concat([...replies, end])));
    expect(hex(encodeList([]))).to.equal(hex(end));
  });

  const items: Exclude<InfoItem, { kind: "unknown" }>[] = [
    { kind: "export", sizeBytes: 2 ** 50, transmissionFlags: 0x0fff },
    { kind: "block-size", minimumBytes: 1, preferredBytes: 4096, maximumBytes: 0xffff_ffff },
    { kind: "name", name: NAME },
    { kind: "description", description: "" },
  ];
  for (const item of items) {
    it(`writes and reads NBD_REP_INFO ${item.kind}`, () => {
      const data = encodeInfoItem(item);
      expect(decodeInfoItem(data)).to.deep.equal(item);
      expectCutsRefused(data.subarray(0, 2), "malformed-option-reply", decodeInfoItem);
      if (item.kind === "export" || item.kind === "block-size") {
        expectCutsRefused(data, "malformed-option-reply", decodeInfoItem);
        const longer = Buffer.concat([data, Buffer.alloc(1)]);
        expect(codeOf(() => decodeInfoItem(longer))).to.equal("malformed-option-reply");
      }
    });
  }

  it("reads an unknown NBD_REP_INFO as such", () => {
    expect(decodeInfoItem(Buffer.from("1234ffff", "hex"))).to.deep.equal({ kind: "unknown", type: 0x1234 });
  });

  it("writes and reads NBD_REP_META_CONTEXT, and refuses cuts inside the id", () => {
    const data = encodeMetaContext({ id: 7, name: "base:allocation" });
    expect(decodeMetaContext(data)).to.deep.equal({ id: 7, name: "base:allocation" });
    expectCutsRefused(data.subarray(0, 4), "malformed-option-reply", decodeMetaContext);
  });
});

describe("wire: requests and replies", () => {
  it("writes and reads a request header, at any place in a buffer", () => {
    const request = {
      ...COOKIE,
      flags: 0x8001,
      type: Command.BlockStatus,
      offset: 2 ** 52,
      lengthBytes: 0xffff_fffe,
    };
    const bytes = Buffer.alloc(30);
    writeRequestHeader(bytes, 1, request);
    expect(hex(bytes)).to.equal(
      "00" + "25609513" + "8001" + "0007" + "fedcba9876543210" + "0010000000000000" + "fffffffe" + "00",
    );
    expect(readRequestHeader(bytes, 1)).to.deep.equal(request);
    expect(codeOf(() => readRequestHeader(bytes, 0))).to.equal("bad-request-magic");
  });

  it("writes and reads a simple reply header", () => {
    const bytes = Buffer.alloc(16);
    writeSimpleReplyHeader(bytes, 0, COOKIE, 28);
    expect(hex(bytes)).to.equal("67446698" + "0000001c" + "fedcba9876543210");
    expect(readSimpleReplyHeader(bytes, 0)).to.deep.equal({ ...COOKIE, errorNumber: 28 });
    expect(codeOf(() => readSimpleReplyHeader(Buffer.alloc(16), 0))).to.equal("bad-reply-magic");
  });

  it("writes and reads an OFFSET_DATA header", () => {
    const bytes = Buffer.alloc(28);
    writeOffsetDataHeader(bytes, 0, COOKIE, ChunkFlag.Done, 4096, 512);
    expect(hex(bytes)).to.equal(
      "668e33ef" + "0001" + "0001" + "fedcba9876543210" + "00000208" + "0000000000001000",
    );
    const header = readChunkHeader(bytes, 0);
    expect(header).to.deep.equal({ ...COOKIE, flags: 1, type: ChunkType.OffsetData, lengthBytes: 520 });
    expect(readOffsetDataPrefix(bytes, CHUNK_HEADER_BYTES, 520)).to.deep.equal({
      offset: 4096,
      dataBytes: 512,
    });
    for (const payloadBytes of [0, 7, 8]) {
      expect(codeOf(() => readOffsetDataPrefix(bytes, 20, payloadBytes))).to.equal("malformed-chunk");
    }
    expect(codeOf(() => readChunkHeader(Buffer.alloc(20), 0))).to.equal("bad-reply-magic");
  });

  /** Header and payload of a whole chunk, the length checked. */
  const split = (chunk: Buffer): { type: number; payload: Buffer } => {
    const { type, lengthBytes } = readChunkHeader(chunk, 0);
    const payload = chunk.subarray(CHUNK_HEADER_BYTES);
    expect(payload).to.have.length(lengthBytes);
    return { type, payload };
  };

  it("writes and reads OFFSET_HOLE, and refuses each cut and an empty hole", () => {
    const { type, payload } = split(encodeOffsetHoleChunk(COOKIE, 0, 2 ** 33, 4096));
    expect(type).to.equal(ChunkType.OffsetHole);
    expect(decodeOffsetHole(payload)).to.deep.equal({ offset: 2 ** 33, holeBytes: 4096 });
    expectCutsRefused(payload, "malformed-chunk", decodeOffsetHole);
    const empty = split(encodeOffsetHoleChunk(COOKIE, 0, 0, 0)).payload;
    expect(codeOf(() => decodeOffsetHole(empty))).to.equal("malformed-chunk");
  });

  it("writes and reads BLOCK_STATUS, and refuses cuts inside a descriptor and empty ones", () => {
    const descriptors = [
      { lengthBytes: 4096, status: 3 },
      { lengthBytes: 0xffff_f000, status: 0 },
    ];
    const { type, payload } = split(encodeBlockStatusChunk(COOKIE, ChunkFlag.Done, 9, descriptors));
    expect(type).to.equal(ChunkType.BlockStatus);
    expect(decodeBlockStatus(payload)).to.deep.equal({ contextId: 9, descriptors });
    for (let end = 0; end < payload.length; end++) {
      const expected = end === 12 ? "no error" : "malformed-chunk";
      expect(codeOf(() => decodeBlockStatus(payload.subarray(0, end)))).to.equal(expected);
    }
    const empty = split(encodeBlockStatusChunk(COOKIE, 0, 9, [{ lengthBytes: 0, status: 0 }])).payload;
    expect(codeOf(() => decodeBlockStatus(empty))).to.equal("malformed-chunk");
  });

  it("writes and reads error chunks, and refuses each cut", () => {
    for (const [chunk, offset] of [
      [encodeErrorChunk(COOKIE, ChunkFlag.Done, 5, "öops"), null],
      [encodeErrorOffsetChunk(COOKIE, ChunkFlag.Done, 5, "öops", 2 ** 40), 2 ** 40],
    ] as const) {
      const { type, payload } = split(chunk);
      expect(decodeErrorChunk(type, payload)).to.deep.equal({ errorNumber: 5, message: "öops", offset });
      expectCutsRefused(payload, "malformed-chunk", (cut) => decodeErrorChunk(type, cut));
      const surplus = Buffer.concat([payload, Buffer.alloc(1)]);
      expect(codeOf(() => decodeErrorChunk(type, surplus))).to.equal("malformed-chunk");
    }
  });

  it("reads unknown error chunks with whatever follows the message, but not error 0", () => {
    const { payload } = split(encodeErrorChunk(COOKIE, 0, 22, "odd"));
    const longer = Buffer.concat([payload, Buffer.alloc(5)]);
    expect(decodeErrorChunk(0x8077, longer)).to.deep.equal({ errorNumber: 22, message: "odd", offset: null });
    const success = split(encodeErrorChunk(COOKIE, 0, 0, "")).payload;
    expect(codeOf(() => decodeErrorChunk(ChunkType.Error, success))).to.equal("malformed-chunk");
  });

  it("numbers the errnos as NBD does, and takes unknown numbers for EINVAL", () => {
    const numbers = {
      EPERM: 1,
      EIO: 5,
      ENOMEM: 12,
      EINVAL: 22,
      ENOSPC: 28,
      EOVERFLOW: 75,
      ENOTSUP: 95,
      ESHUTDOWN: 108,
    };
    for (const [errno, number] of Object.entries(numbers)) {
      expect(errnoOfNumber(number)).to.equal(errno);
      expect(errorNumberOf(errnoOfNumber(number))).to.equal(number);
    }
    expect(errnoOfNumber(9999)).to.equal("EINVAL");
  });
});

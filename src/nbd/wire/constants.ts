/**
 * The numbers of the NBD protocol, under the document's names in camel case.
 *
 * Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md ("Values"); integers on the
 * wire are unsigned and big-endian. 64-bit magics are given as two 32-bit halves.
 */

/** "NBDMAGIC", the first eight bytes of every server. */
export const INIT_MAGIC_HIGH = 0x4e42444d;
export const INIT_MAGIC_LOW = 0x41474943;
/** "IHAVEOPT": newstyle negotiation, and the start of each option request. */
export const OPTION_MAGIC_HIGH = 0x49484156;
export const OPTION_MAGIC_LOW = 0x454f5054;
/** Starts each option reply. */
export const OPTION_REPLY_MAGIC_HIGH = 0x0003e889;
export const OPTION_REPLY_MAGIC_LOW = 0x045565a9;
/** In the place of "IHAVEOPT": an oldstyle server, which we refuse to talk to. */
export const OLDSTYLE_MAGIC_HIGH = 0x00004202;
export const OLDSTYLE_MAGIC_LOW = 0x81861253;

export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
/** Of the branch extension-ext-header of the document, as are the option, the flag and the chunk type that go with them. */
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

/** Names, descriptions, queries and messages "MUST be no longer than 4096 bytes". */
export const STRING_MAXIMUM_BYTES = 4096;
/** What every peer takes as the payload of one request ("Block size constraints"). */
export const PAYLOAD_MAXIMUM_BYTES = 32 * 1024 * 1024;

/** Greeting, server to client. */
export const HandshakeFlag = { FixedNewstyle: 1, NoZeroes: 2 } as const;

/** Answer to the greeting, client to server. */
export const ClientFlag = { FixedNewstyle: 1, NoZeroes: 2 } as const;

export const TransmissionFlag = {
  HasFlags: 1 << 0,
  ReadOnly: 1 << 1,
  SendFlush: 1 << 2,
  SendFua: 1 << 3,
  Rotational: 1 << 4,
  SendTrim: 1 << 5,
  SendWriteZeroes: 1 << 6,
  SendDf: 1 << 7,
  CanMultiConn: 1 << 8,
  SendResize: 1 << 9,
  SendCache: 1 << 10,
  SendFastZero: 1 << 11,
  BlockStatusPayload: 1 << 12,
} as const;

export const Option = {
  ExportName: 1,
  Abort: 2,
  List: 3,
  PeekExport: 4,
  StartTls: 5,
  Info: 6,
  Go: 7,
  StructuredReply: 8,
  ListMetaContext: 9,
  SetMetaContext: 10,
  ExtendedHeaders: 11,
} as const;

/** Errors have bit 31 set. */
export const OptionReplyType = {
  Ack: 1,
  Server: 2,
  Info: 3,
  MetaContext: 4,
  ErrUnsup: 0x8000_0001,
  ErrPolicy: 0x8000_0002,
  ErrInvalid: 0x8000_0003,
  ErrPlatform: 0x8000_0004,
  ErrTlsReqd: 0x8000_0005,
  ErrUnknown: 0x8000_0006,
  ErrShutdown: 0x8000_0007,
  ErrBlockSizeReqd: 0x8000_0008,
  ErrTooBig: 0x8000_0009,
  ErrExtHeaderReqd: 0x8000_000a,
} as const;

/** An option reply type from here on is an error. */
export const OPTION_REPLY_ERROR_BIT = 0x8000_0000;

/** Items of NBD_OPT_INFO and NBD_OPT_GO. */
export const InfoType = { Export: 0, Name: 1, Description: 2, BlockSize: 3 } as const;

export const Command = {
  Read: 0,
  Write: 1,
  Disconnect: 2,
  Flush: 3,
  Trim: 4,
  Cache: 5,
  WriteZeroes: 6,
  BlockStatus: 7,
  Resize: 8,
} as const;

export const CommandFlag = {
  Fua: 1 << 0,
  NoHole: 1 << 1,
  /** "Don't fragment": at most one content chunk in the reply to a read. */
  Df: 1 << 2,
  ReqOne: 1 << 3,
  FastZero: 1 << 4,
  PayloadLen: 1 << 5,
} as const;

/** Structured replies. */
export const ChunkFlag = { Done: 1 } as const;

/** Structured replies; error chunks have bit 15 set. */
export const ChunkType = {
  None: 0,
  OffsetData: 1,
  OffsetHole: 2,
  BlockStatus: 5,
  BlockStatusExt: 6,
  Error: 0x8001,
  ErrorOffset: 0x8002,
} as const;

/** A chunk type from here on is an error chunk, also when we don't know it. */
export const CHUNK_ERROR_BIT = 0x8000;

/** The metadata context of the document itself, and the status flags it defines. */
export const BASE_ALLOCATION = "base:allocation";
export const BlockState = { Hole: 1, Zero: 2 } as const;

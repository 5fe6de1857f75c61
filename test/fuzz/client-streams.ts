/** What a client sends: whole sessions, right in every byte, with headers of either kind. */
import { Command, CommandFlag, InfoType, Option } from "../../src/nbd/wire/constants.js";
import { encodeClientFlags } from "../../src/nbd/wire/handshake.js";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "../../src/nbd/wire/option.js";
import {
  EXTENDED_REQUEST_HEADER_BYTES,
  REQUEST_HEADER_BYTES,
  writeExtendedRequestHeader,
  writeRequestHeader,
} from "../../src/nbd/wire/request.js";
import type { Random } from "../tools/seed.js";

const EMPTY = Buffer.alloc(0);
const COMMANDS = [
  Command.Read,
  Command.Write,
  Command.Flush,
  Command.Trim,
  Command.Cache,
  Command.WriteZeroes,
  Command.BlockStatus,
];

export interface SessionShape {
  readonly exportName: string;
  readonly sizeBytes: number;
  /** Of one request. */
  readonly longestBytes: number;
}

/** Client flags, options up to GO, requests, DISC. */
export function clientSession(shape: SessionShape, random: Random): Buffer {
  const { exportName } = shape;
  const extended = random.below(2) === 0;
  const contexts = {
    exportName,
    queries: random.oneOf([["base:allocation"], ["base:"], [], ["x:y", "base:"]]),
  };
  const info = { exportName, infoTypes: random.oneOf([[], [InfoType.BlockSize], [0, 1, 2, 3, 9]]) };
  const optional = [
    encodeOption(Option.List, EMPTY),
    encodeOption(Option.Info, encodeInfoRequest(info)),
    encodeOption(Option.ListMetaContext, encodeMetaContextRequest(contexts)),
    encodeOption(Option.SetMetaContext, encodeMetaContextRequest(contexts)),
    encodeOption(random.below(40), random.bytes(random.below(100))),
  ].filter(() => random.below(2) === 0);
  const parts = [
    encodeClientFlags(3),
    encodeOption(extended ? Option.ExtendedHeaders : Option.StructuredReply, EMPTY),
    ...optional,
    encodeOption(Option.Go, encodeInfoRequest(info)),
  ];
  for (let count = random.below(24); count > 0; count--) parts.push(...request(shape, extended, random));
  parts.push(header(extended, Command.Disconnect, 0, 0, 0, 0));
  return Buffer.concat(parts);
}

function request(shape: SessionShape, extended: boolean, random: Random): Buffer[] {
  const type = random.oneOf(COMMANDS);
  const fua = random.below(8) === 0 ? CommandFlag.Fua : 0;
  if (type === Command.Flush) return [header(extended, type, 0, random.below(2 ** 31), 0, 0)];
  const lengthBytes = 1 + random.below(shape.longestBytes);
  const offset = random.below(shape.sizeBytes - lengthBytes);
  const payload = type === Command.Write ? random.bytes(lengthBytes) : EMPTY;
  const flags = fua | (extended && type === Command.Write ? CommandFlag.PayloadLen : 0);
  return [header(extended, type, flags, random.below(2 ** 31), offset, lengthBytes), payload];
}

function header(
  extended: boolean,
  type: number,
  flags: number,
  cookieLow: number,
  offset: number,
  lengthBytes: number,
): Buffer {
  const bytes = Buffer.alloc(extended ? EXTENDED_REQUEST_HEADER_BYTES : REQUEST_HEADER_BYTES);
  const write = extended ? writeExtendedRequestHeader : writeRequestHeader;
  write(bytes, 0, { type, flags, cookieHigh: 0, cookieLow, offset, lengthBytes });
  return bytes;
}

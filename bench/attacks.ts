/** The ways to be hostile that `npm run bench:hostile` tries, each as bytes and what is done with them. */
import { Duplex } from "node:stream";
import { connect as connectTls } from "node:tls";

import { Command, Option } from "../src/nbd/wire/constants.js";
import { encodeClientFlags } from "../src/nbd/wire/handshake.js";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "../src/nbd/wire/option.js";
import { requestBytes } from "../test/tools/raw-nbd-client.js";

export interface Attack {
  readonly name: string;
  /** Sent at once. */
  readonly opening: Buffer;
  /** Sent once the server has granted NBD_OPT_STARTTLS; null: nothing is, and it is not asked for. */
  readonly insteadOfTls: Buffer | null;
  /** Sent over and over behind the opening, as fast as the server takes it. */
  readonly flood: Buffer;
  /** Sent byte by byte, one each DRIP_MS, from the beginning again at its end. */
  readonly drip: Buffer;
  /** Whether the server's answers are read. */
  readonly reads: boolean;
  /** How long after the connection came about it is broken off, and a new one made; null: it stays. */
  readonly leavesAfterMs: number | null;
}

export const MEASURED_EXPORT = "disk0";
/** Of those that change what is on the disk, or its extents. */
export const ATTACKED_EXPORT = "disk1";
export const DISK_BYTES = 256 * 1024 * 1024;
export const LARGEST_BYTES = 32 * 1024 * 1024;

const NOTHING = Buffer.alloc(0);
const GREETED = encodeClientFlags(3);
const ENTERED = Buffer.concat([GREETED, go(MEASURED_EXPORT)]);
const ENTERED_OTHER = Buffer.concat([GREETED, go(ATTACKED_EXPORT)]);
const ENTERED_WITH_CONTEXT = Buffer.concat([
  GREETED,
  encodeOption(Option.StructuredReply, NOTHING),
  encodeOption(
    Option.SetMetaContext,
    encodeMetaContextRequest({ exportName: ATTACKED_EXPORT, queries: ["base:allocation"] }),
  ),
  go(ATTACKED_EXPORT),
]);

function go(exportName: string): Buffer {
  return encodeOption(Option.Go, encodeInfoRequest({ exportName, infoTypes: [3] }));
}

/** The first message of a TLS client that means it. */
function clientHello(): Promise<Buffer> {
  return new Promise((resolve) => {
    const wire = new Duplex({
      read: () => undefined,
      write: (bytes: Buffer, _encoding, written) => {
        resolve(bytes);
        written();
      },
    });
    connectTls({ socket: wire });
  });
}

const CLIENT_HELLO = await clientHello();
const SECURING = Buffer.concat([GREETED, encodeOption(Option.StartTls, NOTHING)]);

function repeated(count: number, bytes: Buffer): Buffer {
  return Buffer.concat(Array.from({ length: count }, () => bytes));
}

function attack(name: string, how: Partial<Attack>): Attack {
  return {
    name,
    opening: NOTHING,
    insteadOfTls: null,
    flood: NOTHING,
    drip: NOTHING,
    reads: true,
    leavesAfterMs: null,
    ...how,
  };
}

export const ATTACKS: readonly Attack[] = [
  attack("says nothing", {}),
  attack("slow handshake", { drip: ENTERED }),
  attack("an option of 4 GiB, slowly", {
    opening: Buffer.concat([GREETED, Buffer.from("IHAVEOPT\0\0\0\x63\xff\xff\xff\xff", "latin1")]),
    drip: Buffer.alloc(64),
  }),
  attack("writes of 32 MiB, never completed", {
    opening: Buffer.concat([
      ENTERED,
      requestBytes(Command.Write, { lengthBytes: LARGEST_BYTES }),
      Buffer.alloc(512 * 1024, 0x55),
    ]),
    drip: Buffer.alloc(64, 0x55),
  }),
  attack("reads of 32 MiB, answers never read", {
    opening: Buffer.concat([
      ENTERED,
      repeated(200, requestBytes(Command.Read, { lengthBytes: LARGEST_BYTES })),
    ]),
    reads: false,
  }),
  attack("reads of 64 KiB, answers never read", {
    opening: Buffer.concat([ENTERED, repeated(2000, requestBytes(Command.Read, { lengthBytes: 65_536 }))]),
    reads: false,
  }),
  attack("lists that nobody reads", {
    opening: Buffer.concat([GREETED, repeated(5000, encodeOption(Option.List, NOTHING))]),
    reads: false,
  }),
  attack("a request byte by byte", {
    opening: ENTERED,
    drip: requestBytes(Command.Read, { lengthBytes: 512 }),
  }),
  attack("noise behind the handshake", { opening: Buffer.concat([ENTERED, Buffer.alloc(64, 0x99)]) }),
  attack("connects and leaves", { leavesAfterMs: 20 }),
  attack("TLS, and no word of it", { opening: SECURING, insteadOfTls: NOTHING }),
  attack("half a TLS handshake message", {
    opening: SECURING,
    insteadOfTls: CLIENT_HELLO.subarray(0, CLIENT_HELLO.length / 2),
  }),
  attack("a TLS handshake, never completed", { opening: SECURING, insteadOfTls: CLIENT_HELLO }),
  attack("a TLS handshake, then gone", {
    opening: SECURING,
    insteadOfTls: CLIENT_HELLO,
    leavesAfterMs: 20,
  }),
  attack("noise instead of TLS", { opening: SECURING, insteadOfTls: Buffer.alloc(2000, 0x99) }),
  attack("a flood of lists", { opening: GREETED, flood: repeated(2000, encodeOption(Option.List, NOTHING)) }),
  attack("a flood of reads of 512 bytes", {
    opening: ENTERED,
    flood: repeated(2000, requestBytes(Command.Read, { lengthBytes: 512 })),
  }),
  attack("a flood of requests that are refused", {
    opening: ENTERED,
    flood: repeated(2000, requestBytes(77, {})),
  }),
  attack("a flood of trims of the whole disk", {
    opening: ENTERED_OTHER,
    flood: repeated(2000, requestBytes(Command.Trim, { lengthBytes: DISK_BYTES })),
  }),
  attack("a flood of zeroes over the whole disk", {
    opening: ENTERED_OTHER,
    flood: repeated(2000, requestBytes(Command.WriteZeroes, { lengthBytes: DISK_BYTES })),
  }),
  attack("a flood of block status", {
    opening: ENTERED_WITH_CONTEXT,
    flood: repeated(2000, requestBytes(Command.BlockStatus, { lengthBytes: DISK_BYTES })),
  }),
  attack("a flood of flushes", {
    opening: ENTERED_OTHER,
    flood: repeated(2000, requestBytes(Command.Flush, {})),
  }),
  attack("a flood of writes of 4 KiB", {
    opening: ENTERED_OTHER,
    flood: repeated(
      100,
      Buffer.concat([requestBytes(Command.Write, { lengthBytes: 4096 }), Buffer.alloc(4096, 0x33)]),
    ),
  }),
];

import { expect } from "chai";

import { ProtocolError } from "../../../src/errors.js";
import type { OptionSink, RequestSink } from "../../../src/nbd/receiver.js";
import { RequestReceiver } from "../../../src/nbd/receiver.js";
import { Command, CommandFlag, Option, PAYLOAD_MAXIMUM_BYTES } from "../../../src/nbd/wire/constants.js";
import { encodeClientFlags } from "../../../src/nbd/wire/handshake.js";
import type { OptionHeader } from "../../../src/nbd/wire/option.js";
import { encodeOption } from "../../../src/nbd/wire/option.js";
import {
  EXTENDED_REQUEST_HEADER_BYTES,
  type RequestHeader,
  writeExtendedRequestHeader,
} from "../../../src/nbd/wire/request.js";
import { requestBytes } from "../../tools/raw-nbd-client.js";
import { Random, SEED } from "../../tools/seed.js";

/** Writes down what it is given; keeps what is at most `keepBytes` long. */
class Recorder implements OptionSink, RequestSink {
  readonly events: string[] = [];
  readonly bodies: (Buffer | null)[] = [];
  readonly receiver = new RequestReceiver(this);
  readonly #keepBytes: number;
  isReady = true;
  hasMemory = true;
  isExtended = false;
  /** How often it was asked for memory. */
  asked = 0;

  constructor(keepBytes = 1000) {
    this.#keepBytes = keepBytes;
  }

  ready(): boolean {
    return this.isReady;
  }

  clientFlags(flags: number): void {
    this.events.push(`flags ${flags}`);
  }

  optionHeader({ option, lengthBytes }: OptionHeader): boolean {
    this.events.push(`option header ${option} ${lengthBytes}`);
    return lengthBytes <= this.#keepBytes;
  }

  option({ option }: OptionHeader, data: Buffer | null): void {
    this.events.push(`option ${option} ${data?.toString("hex") ?? "swallowed"}`);
    if (option === Option.Go) this.receiver.enterTransmission(this, this.isExtended);
  }

  payloadBuffer(lengthBytes: number): Buffer {
    return Buffer.alloc(lengthBytes);
  }

  readyForPayload(): boolean {
    this.asked++;
    return this.hasMemory;
  }

  requestHeader({ type, cookieLow, lengthBytes }: RequestHeader): boolean {
    this.events.push(`request header ${type} ${cookieLow} ${lengthBytes}`);
    return lengthBytes <= this.#keepBytes;
  }

  request({ cookieLow }: RequestHeader, payload: Buffer | null): void {
    this.events.push(`request ${cookieLow} ${payload?.toString("hex") ?? "swallowed"}`);
    this.bodies.push(payload);
  }
}

const SESSION = Buffer.concat([
  encodeClientFlags(3),
  encodeOption(99, Buffer.from("data")),
  encodeOption(Option.List, Buffer.alloc(0)),
  encodeOption(98, Buffer.alloc(17)),
  encodeOption(Option.Go, Buffer.from("go")),
  requestBytes(Command.Read, { cookie: 1, lengthBytes: 4096, offset: 2 ** 40 }),
  requestBytes(Command.Write, { cookie: 2, lengthBytes: 5 }),
  Buffer.from("hello"),
  requestBytes(Command.Write, { cookie: 3, lengthBytes: 0 }),
  requestBytes(Command.Write, { cookie: 4, lengthBytes: 20 }),
  Buffer.alloc(20, 0x25),
  requestBytes(Command.Flush, { cookie: 5 }),
]);
const EVENTS = [
  "flags 3",
  "option header 99 4",
  "option 99 64617461",
  "option header 3 0",
  "option 3 ",
  "option header 98 17",
  "option 98 swallowed",
  "option header 7 2",
  "option 7 676f",
  "request header 0 1 4096",
  "request 1 swallowed",
  "request header 1 2 5",
  "request 2 68656c6c6f",
  "request header 1 3 0",
  "request 3 ",
  "request header 1 4 20",
  "request 4 swallowed",
  "request header 3 5 0",
  "request 5 ",
];

describe("RequestReceiver", () => {
  it("gives the same messages wherever the stream is cut in two", () => {
    for (let cut = 0; cut <= SESSION.length; cut++) {
      const recorder = new Recorder(16);
      expect(recorder.receiver.push(SESSION.subarray(0, cut))).to.be.true;
      expect(recorder.receiver.push(SESSION.subarray(cut))).to.be.true;
      expect(recorder.events, `cut at ${cut}`).to.deep.equal(EVENTS);
    }
  });

  it("gives the same messages byte by byte", () => {
    const recorder = new Recorder(16);
    for (const byte of SESSION) recorder.receiver.push(Buffer.from([byte]));
    expect(recorder.events).to.deep.equal(EVENTS);
  });

  it(`gives the same messages for random cuts and pauses, seed ${SEED}`, () => {
    const random = new Random(SEED);
    for (let round = 0; round < 200; round++) {
      const recorder = new Recorder(16);
      let at = 0;
      while (at < SESSION.length) {
        const end = Math.min(SESSION.length, at + 1 + random.below(40));
        recorder.isReady = random.below(3) > 0;
        let drained = recorder.receiver.push(SESSION.subarray(at, end));
        while (!drained) {
          recorder.isReady = random.below(3) > 0;
          drained = recorder.receiver.resume();
        }
        at = end;
      }
      expect(recorder.events).to.deep.equal(EVENTS);
    }
  });

  it("passes a payload that lies in one chunk without a copy, one that spans chunks in a buffer of its size", () => {
    const recorder = new Recorder();
    recorder.receiver.push(Buffer.concat([encodeClientFlags(3), encodeOption(Option.Go, Buffer.alloc(0))]));
    const chunk = Buffer.concat([requestBytes(Command.Write, { lengthBytes: 8 }), Buffer.from("payload!")]);
    recorder.receiver.push(chunk);
    const [whole] = recorder.bodies;
    expect(whole?.buffer).to.equal(chunk.buffer);
    expect(whole?.byteOffset).to.equal(chunk.byteOffset + 28);
    recorder.receiver.push(chunk.subarray(0, 30));
    recorder.receiver.push(chunk.subarray(30));
    const spanning = recorder.bodies[1];
    expect(spanning?.toString()).to.equal("payload!");
    expect(spanning?.buffer.byteLength).to.equal(8);
  });

  it("allocates nothing for bodies that are swallowed, however long they claim to be", () => {
    const recorder = new Recorder(0);
    const before = process.memoryUsage().arrayBuffers;
    const option = encodeOption(5, Buffer.alloc(0));
    option.writeUInt32BE(0xffff_ffff, 12);
    recorder.receiver.push(Buffer.concat([encodeClientFlags(0), option, Buffer.alloc(1000)]));
    const request = new Recorder(0);
    const write = requestBytes(Command.Write, { lengthBytes: 0xffff_ffff });
    const go = encodeOption(Option.Go, Buffer.alloc(0));
    request.receiver.push(Buffer.concat([encodeClientFlags(0), go, write, Buffer.alloc(1000)]));
    expect(process.memoryUsage().arrayBuffers - before).to.be.below(1024 * 1024);
    expect(request.events.at(-1)).to.equal("request header 1 0 4294967295");
  });

  const inTransmission = (keepBytes: number): Recorder => {
    const recorder = new Recorder(keepBytes);
    recorder.receiver.push(Buffer.concat([encodeClientFlags(3), encodeOption(Option.Go, Buffer.alloc(0))]));
    return recorder;
  };

  it("asks for memory once for a payload that is kept, and not for one that is swallowed", () => {
    const recorder = inTransmission(100);
    const kept = Buffer.concat([requestBytes(Command.Write, { lengthBytes: 8 }), Buffer.from("payload!")]);
    recorder.hasMemory = false;
    expect(recorder.receiver.push(kept.subarray(0, 30))).to.equal(false);
    recorder.hasMemory = true;
    expect(recorder.receiver.resume()).to.equal(true);
    recorder.hasMemory = false;
    for (const byte of kept.subarray(30)) expect(recorder.receiver.push(Buffer.of(byte))).to.equal(true);
    expect(recorder.bodies.map(String)).to.deep.equal(["payload!"]);
    expect(recorder.asked).to.equal(2);
    const long = Buffer.concat([requestBytes(Command.Write, { lengthBytes: 200 }), Buffer.alloc(200)]);
    expect(recorder.receiver.push(long)).to.equal(true);
    expect(recorder.asked).to.equal(2);
  });

  it("takes no longer payload of an extended request than any may be", () => {
    const announce = (lengthBytes: number): void => {
      const recorder = new Recorder(0);
      recorder.isExtended = true;
      recorder.receiver.push(Buffer.concat([encodeClientFlags(3), encodeOption(Option.Go, Buffer.alloc(0))]));
      const header = Buffer.alloc(EXTENDED_REQUEST_HEADER_BYTES);
      const fields = { offset: 0, cookieHigh: 0, cookieLow: 0, lengthBytes };
      writeExtendedRequestHeader(header, 0, {
        type: Command.Write,
        flags: CommandFlag.PayloadLen,
        ...fields,
      });
      recorder.receiver.push(header);
    };
    announce(PAYLOAD_MAXIMUM_BYTES);
    expect(() => {
      announce(PAYLOAD_MAXIMUM_BYTES + 1);
    })
      .to.throw(ProtocolError)
      .with.property("code", "payload-too-long");
  });

  it("gives room for the rest of a payload that is long and kept, once there is memory for it", () => {
    const lengthBytes = 3 * 16 * 1024;
    const recorder = inTransmission(lengthBytes);
    const { receiver } = recorder;
    expect(receiver.bodyTarget()).to.equal(null);
    receiver.push(requestBytes(Command.Write, { lengthBytes }));
    recorder.hasMemory = false;
    expect(receiver.bodyTarget()).to.equal(null);
    recorder.hasMemory = true;
    expect(receiver.bodyTarget()?.fill(1).length).to.equal(lengthBytes);
    receiver.bodyReceived(1000);
    // That was granted for all of it.
    recorder.hasMemory = false;
    expect(receiver.bodyTarget()?.fill(2).length).to.equal(lengthBytes - 1000);
    receiver.bodyReceived(2 * 16 * 1024 - 1000);
    expect(receiver.bodyTarget()?.fill(3).length).to.equal(16 * 1024);
    receiver.bodyReceived(1);
    expect(receiver.bodyTarget(), "what is short comes with what follows it").to.equal(null);
    expect(receiver.push(Buffer.alloc(16 * 1024 - 1, 4))).to.equal(true);
    const [body] = recorder.bodies;
    expect([0, 1000, 2 * 16 * 1024, lengthBytes - 1].map((at) => body?.[at])).to.deep.equal([1, 2, 3, 4]);
    expect(body?.length).to.equal(lengthBytes);
    receiver.push(requestBytes(Command.Write, { lengthBytes: lengthBytes + 1 }));
    recorder.hasMemory = true;
    expect(receiver.bodyTarget(), "it is swallowed").to.equal(null);
  });

  it("keeps the rest of a chunk unparsed while the sink is not ready", () => {
    const recorder = new Recorder(16);
    recorder.isReady = false;
    expect(recorder.receiver.push(SESSION)).to.be.false;
    expect(recorder.events).to.deep.equal(["flags 3"]);
    expect(recorder.receiver.resume()).to.be.false;
    recorder.isReady = true;
    expect(recorder.receiver.resume()).to.be.true;
    expect(recorder.events).to.deep.equal(EVENTS);
  });

  for (const [code, bytes] of [
    ["bad-option-magic", Buffer.concat([encodeClientFlags(3), Buffer.alloc(16)])],
    [
      "bad-request-magic",
      Buffer.concat([encodeClientFlags(3), encodeOption(Option.Go, Buffer.alloc(0)), Buffer.alloc(28)]),
    ],
  ] as const) {
    it(`throws ${code} wherever the stream is cut`, () => {
      for (let cut = 0; cut <= bytes.length; cut++) {
        const { receiver } = new Recorder();
        expect(() => {
          receiver.push(bytes.subarray(0, cut));
          receiver.push(bytes.subarray(cut));
        })
          .to.throw(ProtocolError)
          .with.property("code", code);
      }
    });
  }
});

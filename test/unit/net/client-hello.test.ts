import { expect } from "chai";
import { Duplex } from "node:stream";
import { connect } from "node:tls";

import { NegotiationError } from "../../../src/errors.js";
import { ClientHelloReader } from "../../../src/net/tls/client-hello.js";

/** What a client of OpenSSL sends first. */
function genuineHello(): Promise<Buffer> {
  return new Promise((resolve) => {
    const write = (bytes: Buffer, _encoding: string, written: () => void): void => {
      resolve(bytes);
      written();
    };
    connect({ socket: new Duplex({ read: () => undefined, write }) });
  });
}

describe("ClientHelloReader", () => {
  let hello: Buffer;

  before(async () => {
    hello = await genuineHello();
  });

  it("gives a message that came in any two pieces, and what came behind it, once it is complete", () => {
    const behind = Buffer.from("behind");
    for (let cut = 0; cut <= hello.length; cut++) {
      const reader = new ClientHelloReader();
      const whole = cut === hello.length ? reader.push(hello) : null;
      if (whole === null) expect(reader.push(hello.subarray(0, cut)), `cut at ${cut}`).to.equal(null);
      const received = whole ?? reader.push(Buffer.concat([hello.subarray(cut), behind]));
      const expected = whole === null ? Buffer.concat([hello, behind]) : hello;
      expect(received?.equals(expected), `cut at ${cut}`).to.equal(true);
    }
  });

  it("takes it byte by byte, and keeps no byte of the chunks", () => {
    const reader = new ClientHelloReader();
    const chunk = Buffer.alloc(1);
    let received: Buffer | null = null;
    for (const [index, byte] of hello.entries()) {
      chunk[0] = byte;
      received = reader.push(chunk);
      expect(received === null).to.equal(index < hello.length - 1);
    }
    expect(received?.equals(hello)).to.equal(true);
  });

  for (const [what, change] of [
    ["another type of record", [0, 23]],
    ["another major version", [1, 2]],
    ["a record longer than there are any", [3, 0x41]],
    ["another message", [5, 2]],
  ] as const) {
    it(`refuses ${what} at its first byte`, () => {
      const [at, value] = change;
      const bytes = Buffer.from(hello);
      bytes[at] = value;
      const reader = new ClientHelloReader();
      // A length has two bytes.
      const known = at === 3 ? 4 : at;
      expect(known === 0 || reader.push(bytes.subarray(0, known)) === null).to.equal(true);
      expect(() => reader.push(bytes.subarray(known, known + 1)))
        .to.throw(NegotiationError, "no TLS session: what it sends is not TLS")
        .with.property("code", "tls-failed");
    });
  }

  it("refuses an empty record", () => {
    expect(() => new ClientHelloReader().push(Buffer.from([22, 3, 1, 0, 0]))).to.throw(NegotiationError);
  });
});

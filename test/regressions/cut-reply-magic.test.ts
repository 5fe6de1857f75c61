/** Found by the fuzzer: a wrong magic that came in pieces was noticed only with the byte behind it. */
import { expect } from "chai";

import { ProtocolError } from "../../src/errors.js";
import { ReplyReceiver } from "../../src/nbd/client/reply-receiver.js";

describe("a reply that starts with a wrong magic", () => {
  const magic = Buffer.from("668e37ef", "hex");
  for (const cut of [0, 1, 2, 3]) {
    it(`is refused by its fourth byte, cut after ${cut} bytes`, () => {
      const format = { structuredReplies: true, extendedHeaders: false, contexts: new Map<string, number>() };
      const receiver = new ReplyReceiver({ find: () => undefined, answered: () => undefined }, format);
      receiver.push(magic.subarray(0, cut));
      expect(() => {
        receiver.push(magic.subarray(cut));
      })
        .to.throw(ProtocolError)
        .with.property("code", "bad-reply-magic");
    });
  }
});

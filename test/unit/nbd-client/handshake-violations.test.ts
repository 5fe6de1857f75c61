import { expect } from "chai";

import { ProtocolError } from "../../../src/errors.js";
import { HandshakeChannel } from "../../../src/nbd/client/handshake-channel.js";
import { Transport } from "../../../src/nbd/client/transport.js";
import { Option, OptionReplyType } from "../../../src/nbd/wire/constants.js";
import { encodeInfoItem, encodeMetaContext, encodeOptionReply } from "../../../src/nbd/wire/option-reply.js";
import { NO_DATA } from "./scripted-server.js";
import { failureOf } from "../../tools/outcome.js";
import { useScriptedServer } from "./scripted-suite.js";

describe("NBD client handshake", () => {
  const suite = useScriptedServer();

  describe("with a server that breaks the protocol", () => {
    const { StructuredReply, Go } = Option;
    const { Ack, Info, Server, ErrUnsup } = OptionReplyType;
    const exportItem = encodeInfoItem({ kind: "export", sizeBytes: 1, transmissionFlags: 1 });
    const blockSize = (minimumBytes: number, preferredBytes: number, maximumBytes: number): Buffer =>
      Buffer.concat([
        encodeOptionReply(StructuredReply, ErrUnsup, NO_DATA),
        encodeOptionReply(Go, Info, exportItem),
        encodeOptionReply(
          Go,
          Info,
          encodeInfoItem({ kind: "block-size", minimumBytes, preferredBytes, maximumBytes }),
        ),
        encodeOptionReply(Go, Ack, NO_DATA),
      ]);
    const tooLong = encodeOptionReply(StructuredReply, ErrUnsup, NO_DATA);
    tooLong.writeUInt32BE(0xffffffff, 16);

    const greetings: [string, Buffer, string][] = [
      ["is no NBD server", Buffer.from("HTTP/1.1 400 Bad Request\r\n"), "not-nbd"],
      ["has a wrong second magic", Buffer.from("NBDMAGICIHAVEOPS\0\x03", "latin1"), "not-nbd"],
      ["is of the old style", Buffer.from("4e42444d4147494300004202818612530000", "hex"), "oldstyle-server"],
    ];
    for (const [title, greeting, code] of greetings) {
      it(`reports ${code}, naming the server, where it ${title}`, async () => {
        const attempt = suite.connectTo(async (peer) => {
          peer.send(greeting);
          await peer.hangUp();
        });
        const error = await failureOf(attempt);
        expect(error).to.be.instanceOf(ProtocolError).with.property("code", code);
        expect(error.message).to.include("unix:");
      });
    }

    const answers: [string, Buffer, string][] = [
      ["a wrong magic", Buffer.alloc(20, 0x55), "bad-option-reply-magic"],
      ["a reply to another option", encodeOptionReply(Go, Ack, NO_DATA), "wrong-option"],
      ["a reply of 4 GiB", tooLong, "option-reply-too-long"],
      [
        "a reply that fits no option",
        encodeOptionReply(StructuredReply, 99, NO_DATA),
        "unexpected-option-reply",
      ],
      [
        "another option's reply",
        encodeOptionReply(StructuredReply, Server, NO_DATA),
        "unexpected-option-reply",
      ],
      [
        "an error that isn't text",
        encodeOptionReply(StructuredReply, ErrUnsup, Buffer.of(0xff)),
        "string-not-utf8",
      ],
      [
        "the export without its size",
        Buffer.concat([
          encodeOptionReply(StructuredReply, ErrUnsup, NO_DATA),
          encodeOptionReply(Go, Ack, NO_DATA),
        ]),
        "no-export-information",
      ],
      [
        "export information of a wrong length",
        Buffer.concat([
          encodeOptionReply(StructuredReply, ErrUnsup, NO_DATA),
          encodeOptionReply(Go, Info, exportItem.subarray(0, 11)),
        ]),
        "malformed-option-reply",
      ],
      ["a minimum block size of 0", blockSize(0, 512, 4096), "bad-block-size"],
      ["a minimum block size of 3", blockSize(3, 512, 4096), "bad-block-size"],
      ["a minimum block size of 128 KiB", blockSize(131072, 131072, 131072), "bad-block-size"],
      ["a preferred block size under the minimum", blockSize(4096, 512, 4096), "bad-block-size"],
      ["a maximum under the preferred block size", blockSize(1, 4096, 4095), "bad-block-size"],
      [
        "a context that wasn't asked for",
        Buffer.concat([
          encodeOptionReply(StructuredReply, Ack, NO_DATA),
          encodeOptionReply(
            Option.SetMetaContext,
            OptionReplyType.MetaContext,
            encodeMetaContext({ id: 1, name: "qemu:dirty-bitmap:b" }),
          ),
        ]),
        "unasked-meta-context",
      ],
      [
        "a context selected twice",
        Buffer.concat([
          encodeOptionReply(StructuredReply, Ack, NO_DATA),
          ...[1, 2].map((id) =>
            encodeOptionReply(
              Option.SetMetaContext,
              OptionReplyType.MetaContext,
              encodeMetaContext({ id, name: "base:allocation" }),
            ),
          ),
        ]),
        "unasked-meta-context",
      ],
      ["far more than was asked for", Buffer.alloc(1 << 20, "NBD"), "bad-option-reply-magic"],
    ];
    for (const [title, answer, code] of answers) {
      it(`reports ${code} for ${title}`, async () => {
        const attempt = suite.connectTo(async (peer) => {
          await peer.greet();
          await peer.option();
          peer.send(answer);
          await peer.hangUp();
        });
        const error = await failureOf(attempt);
        expect(error).to.be.instanceOf(ProtocolError).with.property("code", code);
      });
    }

    it("doesn't keep what nobody reads", async () => {
      const address = await suite.serve(async (peer) => {
        peer.send(Buffer.alloc(1 << 20));
        await peer.hangUp();
      });
      const channel = new HandshakeChannel(new Transport(address));
      const error = await failureOf(channel.read(1 << 20));
      expect(error).to.be.instanceOf(ProtocolError).with.property("code", "unasked-data");
    });

    it("reports no-go for a server that grants extended headers and has EXPORT_NAME only", async () => {
      const error = await failureOf(suite.connectGranted({ extendedHeaders: true, go: false }));
      expect(error).to.be.instanceOf(ProtocolError).with.property("code", "no-go");
      await failureOf(suite.stop());
    });

    it("takes replies behind the handshake for what they are: answers to nothing", async () => {
      const device = await suite.connectTo(async (peer) => {
        await peer.greet();
        await peer.option();
        peer.send(
          encodeOptionReply(StructuredReply, ErrUnsup, NO_DATA),
          encodeOptionReply(Go, Info, exportItem),
          encodeOptionReply(Go, Ack, NO_DATA),
          Buffer.from("67446698000000000000000000000000", "hex"),
        );
        await peer.hangUp();
      });
      const ended = await device.ended;
      expect(ended).to.be.instanceOf(ProtocolError).with.property("code", "unknown-cookie");
    });
  });
});

import { expect } from "chai";

import { ConfigError, LinkError, NegotiationError, ProtocolError } from "../../../src/errors.js";
import { connectNbd } from "../../../src/nbd/client/connect.js";
import { Option, OptionReplyType } from "../../../src/nbd/wire/constants.js";
import { encodeExportNameReply } from "../../../src/nbd/wire/handshake.js";
import { encodeInfoItem, encodeOptionReply } from "../../../src/nbd/wire/option-reply.js";
import { NO_DATA } from "./scripted-server.js";
import { failureOf } from "../../tools/outcome.js";
import { stopThisProcess } from "../../tools/stopped-process.js";
import { useScriptedServer } from "./scripted-suite.js";

describe("NBD client handshake", () => {
  const suite = useScriptedServer();

  describe("with a server that refuses", () => {
    const refusals: [number, string, string][] = [
      [OptionReplyType.ErrPolicy, "policy", "not for you"],
      [OptionReplyType.ErrInvalid, "invalid", "odd name"],
      [OptionReplyType.ErrPlatform, "platform", "no"],
      [OptionReplyType.ErrTlsReqd, "tls-required", "TLS first"],
      [OptionReplyType.ErrUnknown, "export-unknown", "never heard of it"],
      [OptionReplyType.ErrShutdown, "shutdown", "bye"],
      [OptionReplyType.ErrBlockSizeReqd, "block-size-required", "ask"],
      [OptionReplyType.ErrTooBig, "too-big", "too big"],
      [OptionReplyType.ErrExtHeaderReqd, "extended-headers-required", "newer please"],
      [0x80001234, "refused", "who knows"],
    ];
    for (const [type, code, text] of refusals) {
      it(`reports ${code} with the server's text, the export and the address, and leaves politely`, async () => {
        let goodbye = -1;
        const attempt = suite.connectTo(async (peer) => {
          await peer.greet();
          await peer.option();
          peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrUnsup, NO_DATA));
          await peer.option();
          peer.send(encodeOptionReply(Option.Go, type, Buffer.from(text)));
          goodbye = (await peer.option()).option;
          peer.socket.end();
        });
        const error = await failureOf(attempt);
        expect(error).to.be.instanceOf(NegotiationError).with.property("code", code);
        expect(error.message).to.include(text).and.include('"disk"').and.include("unix:");
        await suite.stop();
        expect(goodbye).to.equal(Option.Abort);
      });
    }

    for (const [option, type] of [
      [Option.ExtendedHeaders, OptionReplyType.ErrTlsReqd],
      [Option.StructuredReply, OptionReplyType.ErrTlsReqd],
      [Option.SetMetaContext, OptionReplyType.ErrShutdown],
    ] as const) {
      it(`gives up where option ${option} is refused for a reason that holds for all options`, async () => {
        const attempt = suite.connectTo(async (peer) => {
          await peer.greet();
          if (option === Option.SetMetaContext) {
            await peer.option();
            peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.Ack, NO_DATA));
          }
          await (option === Option.ExtendedHeaders ? peer.anyOption() : peer.option());
          peer.send(encodeOptionReply(option, type, NO_DATA));
          await peer.hangUp();
        });
        const error = await failureOf(attempt);
        expect(error)
          .to.be.instanceOf(NegotiationError)
          .with.property("code", type === OptionReplyType.ErrTlsReqd ? "tls-required" : "shutdown");
      });
    }

    it("shows no control characters of the server's text", async () => {
      const attempt = suite.connectTo(async (peer) => {
        await peer.greet();
        await peer.option();
        peer.send(
          encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrTlsReqd, Buffer.from("a\n\u001b[2Jb")),
        );
        await peer.hangUp();
      });
      expect((await failureOf(attempt)).message).to.include("a??[2Jb");
    });

    it("refuses an export that is larger than a number can tell", async () => {
      const attempt = suite.connectTo(async (peer) => {
        await peer.greet();
        await peer.option();
        peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrUnsup, NO_DATA));
        await peer.option();
        const item = encodeInfoItem({ kind: "export", sizeBytes: 0, transmissionFlags: 1 });
        item.fill(0xff, 2, 10);
        peer.send(encodeOptionReply(Option.Go, OptionReplyType.Info, item));
        peer.send(encodeOptionReply(Option.Go, OptionReplyType.Ack, NO_DATA));
        await peer.hangUp();
      });
      const error = await failureOf(attempt);
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "size-too-large");
    });

    it("refuses a name that no export can have, before it connects", async () => {
      for (const exportName of ["x".repeat(4097), "\u20ac".repeat(1366), "a\0b", "half of \ud83d"]) {
        const error = await failureOf(
          connectNbd({ address: { kind: "unix", path: "/nonexistent" }, exportName }),
        );
        expect(error).to.be.instanceOf(ConfigError).with.property("code", "bad-export-name");
      }
    });

    it("refuses a number of requests in flight that can't be, before it connects", async () => {
      const address = { kind: "unix", path: "/nonexistent" } as const;
      for (const maxInFlight of [0, -1, 1.5, NaN, 65_537]) {
        const error = await failureOf(connectNbd({ address, exportName: "", maxInFlight }));
        expect(error).to.be.instanceOf(ConfigError).with.property("code", "bad-max-in-flight");
        expect(error.message).to.equal(
          `a connection has 1 to 65536 requests unanswered at a time, not ${maxInFlight}`,
        );
      }
    });

    it("hangs up on a server whose plaintext comes behind its consent to TLS", async () => {
      const address = await suite.serve(async (peer) => {
        await peer.greet();
        await peer.option();
        const consent = encodeOptionReply(Option.StartTls, OptionReplyType.Ack, NO_DATA);
        const forged = encodeOptionReply(Option.StructuredReply, OptionReplyType.Ack, NO_DATA);
        peer.send(Buffer.concat([consent, forged]));
        await peer.hangUp();
      });
      const error = await failureOf(connectNbd({ address, exportName: "disk", tls: true }));
      expect(error).to.be.instanceOf(ProtocolError).with.property("code", "plaintext-injection");
    });

    it("hangs up on a server that consents to TLS and then speaks something else", async () => {
      const address = await suite.serve(async (peer) => {
        await peer.greet();
        await peer.option();
        peer.send(encodeOptionReply(Option.StartTls, OptionReplyType.Ack, NO_DATA));
        peer.socket.once("data", () => peer.socket.end("this is no TLS, and long enough to show it"));
        await peer.hangUp();
      });
      const error = await failureOf(connectNbd({ address, exportName: "disk", tls: true }));
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "tls-failed");
      expect(error.message).to.include("what it sends is not TLS");
    });

    it("refuses certificates and keys that it can't use, before it connects", async () => {
      for (const [tlsParameters, message] of [
        [{ certificates: "/nonexistent" }, "ca-cert.pem is missing"],
        [{ pskFile: "/nonexistent" }, "can't be read"],
        [{ type: "psk" }, "add tls-psk-file"],
        [{ type: "anon" }, "anonymous TLS is not supported"],
      ] as const) {
        const address = { kind: "unix", path: "/nonexistent" } as const;
        const error = await failureOf(connectNbd({ address, exportName: "", tls: true, tlsParameters }));
        expect(error).to.be.instanceOf(ConfigError);
        expect(error.message).to.include(message);
      }
    });
  });

  describe("with a server that goes away", () => {
    it("reports connect-failed, naming the address, where nobody listens", async () => {
      const error = await failureOf(
        connectNbd({ address: { kind: "unix", path: "/nonexistent/sock" }, exportName: "" }),
      );
      expect(error).to.be.instanceOf(LinkError).with.property("code", "connect-failed");
      expect(error.message).to.include("unix:/nonexistent/sock").and.include("ENOENT");
    });

    it("reports connect-timeout for a server that accepts and says nothing", async () => {
      const address = await suite.serve(async (peer) => {
        await peer.hangUp();
      });
      const error = await failureOf(connectNbd({ address, exportName: "", connectTimeoutMs: 20 }));
      expect(error).to.be.instanceOf(LinkError).with.property("code", "connect-timeout");
      expect(error.message).to.include("unix:").and.include("20 ms");
    });

    it("reports connect-timeout for a server that falls silent in the middle", async () => {
      const address = await suite.serve(async (peer) => {
        await peer.greet();
        await peer.option();
        peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.Ack, NO_DATA).subarray(0, 7));
        await peer.hangUp();
      });
      const error = await failureOf(connectNbd({ address, exportName: "", connectTimeoutMs: 50 }));
      expect(error).to.have.property("code", "connect-timeout");
    });

    it("goes on with a handshake whose bytes came while this process was stopped for longer than it may take", async () => {
      const address = await suite.serve(async (peer) => {
        await peer.greet();
        await peer.option();
        peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrUnsup, NO_DATA));
        stopThisProcess(1500);
        await peer.option();
        peer.send(encodeOptionReply(Option.Go, OptionReplyType.ErrPolicy, Buffer.from("went on")));
        await peer.hangUp();
      });
      const error = await failureOf(connectNbd({ address, exportName: "", connectTimeoutMs: 1000 }));
      expect(error).to.have.property("code", "policy");
    });

    it("reports link-lost wherever the server hangs up", async () => {
      const conversation = Buffer.concat([
        Buffer.from("NBDMAGICIHAVEOPT\0\x03", "latin1"),
        encodeOptionReply(Option.ExtendedHeaders, OptionReplyType.ErrUnsup, NO_DATA),
        encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrUnsup, NO_DATA),
        encodeOptionReply(Option.Go, OptionReplyType.ErrUnsup, NO_DATA),
        encodeExportNameReply({ sizeBytes: 1, transmissionFlags: 1 }, true),
      ]);
      const cuts = new Set<number>();
      const address = await suite.serve(async (peer) => {
        peer.send(conversation.subarray(0, cuts.size));
        peer.socket.end();
        await peer.hangUp();
      });
      for (let cut = 0; cut < conversation.length; cut++) {
        const error = await failureOf(connectNbd({ address, exportName: "", connectTimeoutMs: 5000 }));
        expect(error, `after ${cut} bytes`).to.be.instanceOf(LinkError);
        expect(error, `after ${cut} bytes`).to.have.property("code", "link-lost");
        cuts.add(cut);
      }
    });

    it("tells which export was asked for when EXPORT_NAME is answered by hanging up", async () => {
      const attempt = suite.connectTo(async (peer) => {
        await peer.greet(0);
        await peer.option();
        peer.socket.end();
      });
      expect((await failureOf(attempt)).message).to.include('"disk"');
    });
  });
});

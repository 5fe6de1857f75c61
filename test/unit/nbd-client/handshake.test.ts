import { expect } from "chai";

import type { ReplError } from "../../../src/errors.js";
import { ConfigError, LinkError, NegotiationError, ProtocolError, asError } from "../../../src/errors.js";
import { connectNbd, listExports } from "../../../src/nbd/client/connect.js";
import { HandshakeChannel } from "../../../src/nbd/client/handshake-channel.js";
import { Transport } from "../../../src/nbd/client/transport.js";
import type { NbdDevice } from "../../../src/nbd/client/device.js";
import {
  BASE_ALLOCATION,
  Option,
  OptionReplyType,
  TransmissionFlag,
} from "../../../src/nbd/wire/constants.js";
import { EXPORT_NAME_PADDING_BYTES, encodeExportNameReply } from "../../../src/nbd/wire/handshake.js";
import { decodeMetaContextRequest } from "../../../src/nbd/wire/option.js";
import {
  encodeInfoItem,
  encodeMetaContext,
  encodeOptionReply,
  encodeServerEntry,
} from "../../../src/nbd/wire/option-reply.js";
import { ALL_FLAGS, NO_DATA, ScriptedServer } from "./scripted-server.js";
import type { ClientHandshake, Grants, Peer } from "./scripted-server.js";

describe("NBD client handshake", () => {
  let server: ScriptedServer | null = null;

  async function stop(): Promise<void> {
    const stopping = server?.stop();
    server = null;
    await stopping;
  }

  afterEach(stop);

  async function connectTo(script: (peer: Peer) => Promise<void>, exportName = "disk"): Promise<NbdDevice> {
    server = await ScriptedServer.start(script);
    return connectNbd({ address: server.address, exportName, connectTimeoutMs: 5000 });
  }

  async function connectGranted(
    grants: Grants,
    exportName = "disk",
  ): Promise<{ device: NbdDevice; said: ClientHandshake | null }> {
    let said = null as ClientHandshake | null;
    const device = await connectTo(async (peer) => {
      said = await peer.handshake(grants);
      await peer.hangUp();
    }, exportName);
    await device.close();
    return { device, said };
  }

  async function failure(attempt: Promise<unknown>): Promise<ReplError> {
    const error = await attempt.then(
      () => null,
      (reason: unknown) => asError(reason),
    );
    expect(error, "the attempt was to fail").not.to.equal(null);
    return error as ReplError;
  }

  describe("with a server that has everything", () => {
    it("negotiates structured replies, base:allocation and the export, in this order", async () => {
      const { device, said } = await connectGranted(
        { sizeBytes: 123456789, structuredReplies: true, contextId: 42, blockSize: [512, 65536, 1 << 20] },
        "d\u00efsk",
      );
      expect(said).to.deep.equal({
        clientFlags: 3,
        options: [Option.StructuredReply, Option.SetMetaContext, Option.Go],
        exportName: "d\u00efsk",
        blockSizeAsked: true,
      });
      expect(device.info).to.deep.equal({
        sizeBytes: 123456789,
        blockSize: { minimumBytes: 512, preferredBytes: 65536, maximumBytes: 1 << 20 },
        writable: true,
        trim: "native",
        zero: "native",
        fua: "native",
        extents: "native",
      });
      expect(device.canFastZero).to.equal(true);
      expect(device.canMultiConn).to.equal(true);
    });

    it("asks for base:allocation of the very export", async () => {
      let asked = null as unknown;
      const device = await connectTo(async (peer) => {
        await peer.greet();
        await peer.option();
        peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.Ack, NO_DATA));
        asked = decodeMetaContextRequest((await peer.option()).data);
        peer.send(encodeOptionReply(Option.SetMetaContext, OptionReplyType.Ack, NO_DATA));
        await peer.option();
        const item = encodeInfoItem({ kind: "export", sizeBytes: 1, transmissionFlags: 1 });
        peer.send(encodeOptionReply(Option.Go, OptionReplyType.Info, item));
        peer.send(encodeOptionReply(Option.Go, OptionReplyType.Ack, NO_DATA));
        await peer.hangUp();
      });
      expect(asked).to.deep.equal({ exportName: "disk", queries: [BASE_ALLOCATION] });
      expect(device.info.extents).to.equal("none");
      await device.close();
    });
  });

  describe("with a server that lacks something", () => {
    it("does without structured replies, and then without contexts", async () => {
      const { device, said } = await connectGranted({});
      expect(said?.options).to.deep.equal([Option.StructuredReply, Option.Go]);
      expect(device.info.extents).to.equal("none");
    });

    it("takes the document's block sizes where none are advertised", async () => {
      const { device } = await connectGranted({});
      expect(device.info.blockSize).to.deep.equal({
        minimumBytes: 1,
        preferredBytes: 4096,
        maximumBytes: 1 << 25,
      });
    });

    it("falls back to EXPORT_NAME without GO", async () => {
      const { device, said } = await connectGranted({ go: false, sizeBytes: 4096 });
      expect(said?.options).to.deep.equal([Option.StructuredReply, Option.Go, Option.ExportName]);
      expect(said?.exportName).to.equal("disk");
      expect(device.info.sizeBytes).to.equal(4096);
    });

    it("uses EXPORT_NAME alone with a server of plain newstyle, and skips its 124 zeroes", async () => {
      let clientFlags = -1;
      const device = await connectTo(async (peer) => {
        clientFlags = await peer.greet(0);
        const { option } = await peer.option();
        expect(option).to.equal(Option.ExportName);
        peer.send(encodeExportNameReply({ sizeBytes: 8192, transmissionFlags: ALL_FLAGS }, false));
        // Were the zeroes not skipped, they would be a bad reply by now.
        await peer.hangUp();
      });
      expect(clientFlags).to.equal(0);
      expect(device.info.sizeBytes).to.equal(8192);
      await device.close();
      expect(await device.ended).to.equal(null);
      expect(EXPORT_NAME_PADDING_BYTES).to.equal(124);
    });

    it("reports what a server without any flags can't do", async () => {
      const { device } = await connectGranted({
        transmissionFlags: TransmissionFlag.HasFlags | TransmissionFlag.ReadOnly,
      });
      expect(device.info).to.deep.include({ writable: false, trim: "none", zero: "none", fua: "emulated" });
      expect(device.canFastZero).to.equal(false);
      expect(device.canMultiConn).to.equal(false);
    });

    it("never believes in fast zeroing without zeroing", async () => {
      const { device } = await connectGranted({ transmissionFlags: 1 | TransmissionFlag.SendFastZero });
      expect(device.canFastZero).to.equal(false);
    });

    it("bounds a server without a maximum payload to 32 MiB, in whole blocks", async () => {
      const { device } = await connectGranted({ blockSize: [4096, 4096, 0xffffffff] });
      expect(device.info.blockSize.maximumBytes).to.equal(1 << 25);
      await stop();
      const { device: odd } = await connectGranted({ blockSize: [4096, 4096, 10_000] });
      expect(odd.info.blockSize.maximumBytes).to.equal(8192);
    });
  });

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
        const attempt = connectTo(async (peer) => {
          await peer.greet();
          await peer.option();
          peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrUnsup, NO_DATA));
          await peer.option();
          peer.send(encodeOptionReply(Option.Go, type, Buffer.from(text)));
          goodbye = (await peer.option()).option;
          peer.socket.end();
        });
        const error = await failure(attempt);
        expect(error).to.be.instanceOf(NegotiationError);
        expect(error.code).to.equal(code);
        expect(error.message).to.include(text).and.include('"disk"').and.include("unix:");
        await stop();
        expect(goodbye).to.equal(Option.Abort);
      });
    }

    for (const [option, type] of [
      [Option.StructuredReply, OptionReplyType.ErrTlsReqd],
      [Option.SetMetaContext, OptionReplyType.ErrShutdown],
    ] as const) {
      it(`gives up where option ${option} is refused for a reason that holds for all options`, async () => {
        const attempt = connectTo(async (peer) => {
          await peer.greet();
          if (option === Option.SetMetaContext) {
            await peer.option();
            peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.Ack, NO_DATA));
          }
          await peer.option();
          peer.send(encodeOptionReply(option, type, NO_DATA));
          await peer.hangUp();
        });
        const error = await failure(attempt);
        expect(error).to.be.instanceOf(NegotiationError);
        expect(error.code).to.equal(type === OptionReplyType.ErrTlsReqd ? "tls-required" : "shutdown");
      });
    }

    it("shows no control characters of the server's text", async () => {
      const attempt = connectTo(async (peer) => {
        await peer.greet();
        await peer.option();
        peer.send(
          encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrTlsReqd, Buffer.from("a\n\u001b[2Jb")),
        );
        await peer.hangUp();
      });
      expect((await failure(attempt)).message).to.include("a??[2Jb");
    });

    it("refuses an export that is larger than a number can tell", async () => {
      const attempt = connectTo(async (peer) => {
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
      const error = await failure(attempt);
      expect(error).to.be.instanceOf(NegotiationError);
      expect(error.code).to.equal("size-too-large");
    });

    it("refuses TLS, which it can't do yet, before it connects", async () => {
      const error = await failure(
        connectNbd({ address: { kind: "unix", path: "/nonexistent" }, exportName: "", tls: true }),
      );
      expect(error).to.be.instanceOf(ConfigError);
    });
  });

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
        const attempt = connectTo(async (peer) => {
          peer.send(greeting);
          await peer.hangUp();
        });
        const error = await failure(attempt);
        expect(error).to.be.instanceOf(ProtocolError);
        expect(error.code).to.equal(code);
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
      ["far more than was asked for", Buffer.alloc(1 << 20, "NBD"), "bad-option-reply-magic"],
    ];
    for (const [title, answer, code] of answers) {
      it(`reports ${code} for ${title}`, async () => {
        const attempt = connectTo(async (peer) => {
          await peer.greet();
          peer.send(answer);
          await peer.hangUp();
        });
        const error = await failure(attempt);
        expect(error).to.be.instanceOf(ProtocolError);
        expect(error.code).to.equal(code);
      });
    }

    it("doesn't keep what nobody reads", async () => {
      server = await ScriptedServer.start(async (peer) => {
        peer.send(Buffer.alloc(1 << 20));
        await peer.hangUp();
      });
      const channel = new HandshakeChannel(new Transport(server.address));
      const error = await failure(channel.read(1 << 20));
      expect(error).to.be.instanceOf(ProtocolError);
      expect(error.code).to.equal("unasked-data");
    });

    it("takes replies behind the handshake for what they are: answers to nothing", async () => {
      const device = await connectTo(async (peer) => {
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

  describe("with a server that goes away", () => {
    it("reports connect-failed, naming the address, where nobody listens", async () => {
      const error = await failure(
        connectNbd({ address: { kind: "unix", path: "/nonexistent/sock" }, exportName: "" }),
      );
      expect(error).to.be.instanceOf(LinkError);
      expect(error.code).to.equal("connect-failed");
      expect(error.message).to.include("unix:/nonexistent/sock").and.include("ENOENT");
    });

    it("reports connect-timeout for a server that accepts and says nothing", async () => {
      server = await ScriptedServer.start(async (peer) => {
        await peer.hangUp();
      });
      const error = await failure(
        connectNbd({ address: server.address, exportName: "", connectTimeoutMs: 20 }),
      );
      expect(error).to.be.instanceOf(LinkError);
      expect(error.code).to.equal("connect-timeout");
      expect(error.message).to.include("unix:").and.include("20 ms");
    });

    it("reports connect-timeout for a server that falls silent in the middle", async () => {
      server = await ScriptedServer.start(async (peer) => {
        await peer.greet();
        await peer.option();
        peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.Ack, NO_DATA).subarray(0, 7));
        await peer.hangUp();
      });
      const error = await failure(
        connectNbd({ address: server.address, exportName: "", connectTimeoutMs: 50 }),
      );
      expect(error.code).to.equal("connect-timeout");
    });

    it("reports link-lost wherever the server hangs up", async () => {
      const conversation = Buffer.concat([
        Buffer.from("NBDMAGICIHAVEOPT\0\x03", "latin1"),
        encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrUnsup, NO_DATA),
        encodeOptionReply(Option.Go, OptionReplyType.ErrUnsup, NO_DATA),
        encodeExportNameReply({ sizeBytes: 1, transmissionFlags: 1 }, true),
      ]);
      const cuts = new Set<number>();
      server = await ScriptedServer.start(async (peer) => {
        peer.send(conversation.subarray(0, cuts.size));
        peer.socket.end();
        await peer.hangUp();
      });
      for (let cut = 0; cut < conversation.length; cut++) {
        const error = await failure(
          connectNbd({ address: server.address, exportName: "", connectTimeoutMs: 5000 }),
        );
        expect(error, `after ${cut} bytes`).to.be.instanceOf(LinkError);
        expect(error.code, `after ${cut} bytes`).to.equal("link-lost");
        cuts.add(cut);
      }
    });

    it("tells which export was asked for when EXPORT_NAME is answered by hanging up", async () => {
      const attempt = connectTo(async (peer) => {
        await peer.greet(0);
        await peer.option();
        peer.socket.end();
      });
      expect((await failure(attempt)).message).to.include('"disk"');
    });
  });

  describe("listExports", () => {
    async function list(script: (peer: Peer) => Promise<void>): Promise<string[]> {
      server = await ScriptedServer.start(script);
      return listExports({ address: server.address, connectTimeoutMs: 5000 });
    }

    it("names all exports, then leaves by ABORT", async () => {
      let goodbye = -1;
      const names = await list(async (peer) => {
        await peer.greet();
        expect(await peer.option()).to.deep.equal({ option: Option.List, data: NO_DATA });
        for (const exportName of ["disk0", "", "\u20ac"]) {
          const entry = encodeServerEntry({ exportName, description: "d" });
          peer.send(encodeOptionReply(Option.List, OptionReplyType.Server, entry));
        }
        peer.send(encodeOptionReply(Option.List, OptionReplyType.Ack, NO_DATA));
        goodbye = (await peer.option()).option;
        peer.socket.end();
      });
      expect(names).to.deep.equal(["disk0", "", "\u20ac"]);
      await stop();
      expect(goodbye).to.equal(Option.Abort);
    });

    it("reports a refusal", async () => {
      const error = await failure(
        list(async (peer) => {
          await peer.greet();
          await peer.option();
          peer.send(encodeOptionReply(Option.List, OptionReplyType.ErrPolicy, Buffer.from("secret")));
          await peer.hangUp();
        }),
      );
      expect(error).to.be.instanceOf(NegotiationError);
      expect(error.code).to.equal("policy");
      expect(error.message).to.include("secret");
    });

    it("reports a list without end", async () => {
      const error = await failure(
        list(async (peer) => {
          await peer.greet();
          await peer.option();
          const entry = encodeServerEntry({ exportName: "x", description: "" });
          const reply = encodeOptionReply(Option.List, OptionReplyType.Server, entry);
          peer.send(...Array.from({ length: 70_000 }, () => reply));
          await peer.hangUp();
        }),
      );
      expect(error).to.be.instanceOf(ProtocolError);
      expect(error.code).to.equal("too-many-option-replies");
    });
  });
});

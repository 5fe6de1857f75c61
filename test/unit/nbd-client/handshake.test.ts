import { expect } from "chai";

import {
  BASE_ALLOCATION,
  Option,
  OptionReplyType,
  TransmissionFlag,
} from "../../../src/nbd/wire/constants.js";
import { EXPORT_NAME_PADDING_BYTES, encodeExportNameReply } from "../../../src/nbd/wire/handshake.js";
import { decodeMetaContextRequest } from "../../../src/nbd/wire/option.js";
import { encodeInfoItem, encodeOptionReply } from "../../../src/nbd/wire/option-reply.js";
import { ALL_FLAGS, NO_DATA } from "./scripted-server.js";
import { useScriptedServer } from "./scripted-suite.js";

describe("NBD client handshake", () => {
  const suite = useScriptedServer();

  describe("with a server that has everything", () => {
    it("negotiates structured replies, base:allocation and the export, in this order", async () => {
      const { device, said } = await suite.connectGranted(
        { sizeBytes: 123456789, structuredReplies: true, contextId: 42, blockSize: [512, 65536, 1 << 20] },
        "d\u00efsk",
      );
      expect(said).to.deep.equal({
        clientFlags: 3,
        options: [Option.ExtendedHeaders, Option.StructuredReply, Option.SetMetaContext, Option.Go],
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

    it("negotiates extended headers, which need no structured replies", async () => {
      const { device, said } = await suite.connectGranted({ extendedHeaders: true, contextId: 42 });
      expect(said?.options).to.deep.equal([Option.ExtendedHeaders, Option.SetMetaContext, Option.Go]);
      expect(device.hasExtendedHeaders).to.equal(true);
      expect(device.info.extents).to.equal("native");
    });

    it("does not ask for extended headers where they are not wanted", async () => {
      const { device, said } = await suite.connectGranted(
        { extendedHeaders: true, structuredReplies: true, contextId: 42 },
        "disk",
        { extendedHeaders: false },
      );
      expect(said?.options).to.deep.equal([Option.StructuredReply, Option.SetMetaContext, Option.Go]);
      expect(device.hasExtendedHeaders).to.equal(false);
    });

    it("asks for base:allocation of the very export", async () => {
      let asked = null as unknown;
      const device = await suite.connectTo(async (peer) => {
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
      const { device, said } = await suite.connectGranted({});
      expect(said?.options).to.deep.equal([Option.ExtendedHeaders, Option.StructuredReply, Option.Go]);
      expect(device.hasExtendedHeaders).to.equal(false);
      expect(device.info.extents).to.equal("none");
    });

    it("takes the document's block sizes where none are advertised", async () => {
      const { device } = await suite.connectGranted({});
      expect(device.info.blockSize).to.deep.equal({
        minimumBytes: 1,
        preferredBytes: 4096,
        maximumBytes: 1 << 25,
      });
    });

    it("prefers no larger blocks than a payload may have", async () => {
      const { device } = await suite.connectGranted({ blockSize: [512, 1 << 26, 0xffff_ffff] });
      expect(device.info.blockSize).to.deep.equal({
        minimumBytes: 512,
        preferredBytes: 1 << 25,
        maximumBytes: 1 << 25,
      });
    });

    it("falls back to EXPORT_NAME without GO", async () => {
      const { device, said } = await suite.connectGranted({ go: false, sizeBytes: 4096 });
      expect(said?.options).to.deep.equal([
        Option.ExtendedHeaders,
        Option.StructuredReply,
        Option.Go,
        Option.ExportName,
      ]);
      expect(said?.exportName).to.equal("disk");
      expect(device.info.sizeBytes).to.equal(4096);
    });

    it("uses EXPORT_NAME alone with a server of plain newstyle, and skips its 124 zeroes", async () => {
      let clientFlags = -1;
      const device = await suite.connectTo(async (peer) => {
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
      const { device } = await suite.connectGranted({
        transmissionFlags: TransmissionFlag.HasFlags | TransmissionFlag.ReadOnly,
      });
      expect(device.info).to.deep.include({ writable: false, trim: "none", zero: "none", fua: "emulated" });
      expect(device.canFastZero).to.equal(false);
      expect(device.canMultiConn).to.equal(false);
    });

    it("never believes in fast zeroing without zeroing", async () => {
      const { device } = await suite.connectGranted({ transmissionFlags: 1 | TransmissionFlag.SendFastZero });
      expect(device.canFastZero).to.equal(false);
    });

    it("bounds a server without a maximum payload to 32 MiB, in whole blocks", async () => {
      const { device } = await suite.connectGranted({ blockSize: [4096, 4096, 0xffffffff] });
      expect(device.info.blockSize.maximumBytes).to.equal(1 << 25);
      await suite.stop();
      const { device: odd } = await suite.connectGranted({ blockSize: [4096, 4096, 10_000] });
      expect(odd.info.blockSize.maximumBytes).to.equal(8192);
    });
  });
});

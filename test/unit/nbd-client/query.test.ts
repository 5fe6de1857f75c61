import { expect } from "chai";

import { ConfigError, NegotiationError, ProtocolError } from "../../../src/errors.js";
import { describeExport, listExports, listMetaContexts } from "../../../src/nbd/client/query.js";
import type { ExportDescription, ListedExport } from "../../../src/nbd/client/query.js";
import { formatNbdUri } from "../../../src/nbd/uri.js";
import { InfoType, Option, OptionReplyType, TransmissionFlag } from "../../../src/nbd/wire/constants.js";
import { decodeInfoRequest, decodeMetaContextRequest } from "../../../src/nbd/wire/option.js";
import {
  encodeInfoItem,
  encodeMetaContext,
  encodeOptionReply,
  encodeServerEntry,
} from "../../../src/nbd/wire/option-reply.js";
import { failureOf } from "../../tools/outcome.js";
import { ALL_FLAGS, NO_DATA } from "./scripted-server.js";
import type { Peer } from "./scripted-server.js";
import { useScriptedServer } from "./scripted-suite.js";

const CONNECT_TIMEOUT_MS = 5000;
const EXPORT_ITEM = encodeInfoItem({
  kind: "export",
  sizeBytes: 2 ** 40,
  transmissionFlags: ALL_FLAGS | TransmissionFlag.Rotational,
});

/** Answers an option with `items` of one type, then with `last`. */
function answer(peer: Peer, option: number, type: number, items: readonly Buffer[], last: number): void {
  for (const item of items) peer.send(encodeOptionReply(option, type, item));
  peer.send(encodeOptionReply(option, last, NO_DATA));
}

function acknowledge(peer: Peer, option: number, type: number, items: readonly Buffer[] = []): void {
  answer(peer, option, type, items, OptionReplyType.Ack);
}

function contextItems(...names: readonly string[]): Buffer[] {
  // "Clients MUST disregard" the number.
  return names.map((name) => encodeMetaContext({ id: 77, name }));
}

describe("NBD client, asking what a server has", () => {
  const suite = useScriptedServer();

  describe("listExports", () => {
    async function list(script: (peer: Peer) => Promise<void>): Promise<ListedExport[]> {
      const address = await suite.serve(script);
      return listExports({ address, connectTimeoutMs: CONNECT_TIMEOUT_MS });
    }

    it("tells names and descriptions of all exports, then leaves by ABORT", async () => {
      let goodbye = -1;
      const exports = await list(async (peer) => {
        await peer.greet();
        expect(await peer.option()).to.deep.equal({ option: Option.List, data: NO_DATA });
        const entries = [
          { exportName: "disk0", description: "the first" },
          { exportName: "", description: "" },
          { exportName: "\u20ac", description: "\u00fc" },
        ];
        acknowledge(peer, Option.List, OptionReplyType.Server, entries.map(encodeServerEntry));
        goodbye = (await peer.option()).option;
        peer.socket.end();
      });
      expect(exports).to.deep.equal([
        { name: "disk0", description: "the first" },
        { name: "", description: "" },
        { name: "\u20ac", description: "\u00fc" },
      ]);
      await suite.stop();
      expect(goodbye).to.equal(Option.Abort);
    });

    it("takes a URI, too", async () => {
      const address = await suite.serve(async (peer) => {
        await peer.greet();
        await peer.option();
        const entry = encodeServerEntry({ exportName: "a", description: "" });
        acknowledge(peer, Option.List, OptionReplyType.Server, [entry]);
        await peer.hangUp();
      });
      const uri = formatNbdUri({ address, exportName: "", tls: false, tlsParameters: {} });
      expect(await listExports(uri)).to.deep.equal([{ name: "a", description: "" }]);
    });

    it("reports a refusal", async () => {
      const error = await failureOf(
        list(async (peer) => {
          await peer.greet();
          await peer.option();
          peer.send(encodeOptionReply(Option.List, OptionReplyType.ErrPolicy, Buffer.from("secret")));
          await peer.hangUp();
        }),
      );
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "policy");
      expect(error.message).to.include("secret");
    });

    it("reports a list without end", async () => {
      const error = await failureOf(
        list(async (peer) => {
          await peer.greet();
          await peer.option();
          const entry = encodeServerEntry({ exportName: "x", description: "" });
          const reply = encodeOptionReply(Option.List, OptionReplyType.Server, entry);
          peer.send(...Array.from({ length: 70_000 }, () => reply));
          await peer.hangUp();
        }),
      );
      expect(error).to.be.instanceOf(ProtocolError).with.property("code", "too-many-option-replies");
    });
  });

  describe("describeExport", () => {
    async function describeBy(
      script: (peer: Peer) => Promise<void>,
      exportName = "disk",
    ): Promise<ExportDescription> {
      const address = await suite.serve(async (peer) => {
        await script(peer);
        await peer.hangUp();
      });
      return describeExport({ address, exportName, connectTimeoutMs: CONNECT_TIMEOUT_MS });
    }

    it("tells all that INFO and LIST_META_CONTEXT do, and leaves without entering transmission", async () => {
      const asked: unknown[] = [];
      let goodbye: Buffer = NO_DATA;
      const description = await describeBy(async (peer) => {
        await peer.greet();
        expect((await peer.anyOption()).option).to.equal(Option.ExtendedHeaders);
        acknowledge(peer, Option.ExtendedHeaders, OptionReplyType.Ack);
        const info = await peer.option();
        asked.push(info.option, decodeInfoRequest(info.data));
        acknowledge(peer, Option.Info, OptionReplyType.Info, [
          encodeInfoItem({ kind: "description", description: "backup of \u20ac" }),
          // Of a later document.
          Buffer.of(0x12, 0x34, 1, 2, 3),
          encodeInfoItem({
            kind: "block-size",
            minimumBytes: 512,
            preferredBytes: 65536,
            maximumBytes: 1 << 20,
          }),
          EXPORT_ITEM,
          encodeInfoItem({ kind: "name", name: "the disk" }),
        ]);
        const contexts = await peer.option();
        asked.push(contexts.option, decodeMetaContextRequest(contexts.data));
        const items = contextItems("base:allocation", "qemu:dirty-bitmap:b0", "x-days:");
        acknowledge(peer, Option.ListMetaContext, OptionReplyType.MetaContext, items);
        goodbye = await peer.hangUp();
      });
      expect(description).to.deep.equal({
        name: "the disk",
        description: "backup of \u20ac",
        info: {
          sizeBytes: 2 ** 40,
          blockSize: { minimumBytes: 512, preferredBytes: 65536, maximumBytes: 1 << 20 },
          writable: true,
          trim: "native",
          zero: "native",
          fua: "native",
          extents: "native",
        },
        canMultiConn: true,
        canFastZero: true,
        isRotational: true,
        hasExtendedHeaders: true,
        metaContexts: ["base:allocation", "qemu:dirty-bitmap:b0", "x-days:"],
      });
      expect(asked).to.deep.equal([
        Option.Info,
        { exportName: "disk", infoTypes: [InfoType.BlockSize, InfoType.Name, InfoType.Description] },
        Option.ListMetaContext,
        { exportName: "disk", queries: [] },
      ]);
      await suite.stop();
      expect(goodbye.readUInt32BE(8)).to.equal(Option.Abort);
    });

    it("does without what a server lacks: chunks, contexts, name, description, block sizes", async () => {
      const options: number[] = [];
      const description = await describeBy(async (peer) => {
        await peer.greet();
        options.push((await peer.option()).option);
        peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrUnsup, NO_DATA));
        options.push((await peer.option()).option);
        const item = encodeInfoItem({ kind: "export", sizeBytes: 512, transmissionFlags: 3 });
        acknowledge(peer, Option.Info, OptionReplyType.Info, [item]);
      });
      expect(options).to.deep.equal([Option.StructuredReply, Option.Info]);
      expect(description).to.deep.equal({
        name: "disk",
        description: "",
        info: {
          sizeBytes: 512,
          blockSize: { minimumBytes: 1, preferredBytes: 4096, maximumBytes: 1 << 25 },
          writable: false,
          trim: "none",
          zero: "none",
          fua: "emulated",
          extents: "none",
        },
        canMultiConn: false,
        canFastZero: false,
        isRotational: false,
        hasExtendedHeaders: false,
        metaContexts: [],
      });
    });

    it("disregards contexts that were told before an error", async () => {
      const description = await describeBy(async (peer) => {
        await peer.greet();
        await peer.option();
        acknowledge(peer, Option.StructuredReply, OptionReplyType.Ack);
        await peer.option();
        acknowledge(peer, Option.Info, OptionReplyType.Info, [EXPORT_ITEM]);
        const { option } = await peer.option();
        const items = contextItems("base:allocation");
        answer(peer, option, OptionReplyType.MetaContext, items, OptionReplyType.ErrTooBig);
      });
      expect(description.metaContexts).to.deep.equal([]);
      expect(description.info.extents).to.equal("none");
    });

    const INFO_REFUSALS = [
      [OptionReplyType.ErrUnknown, "export-unknown"],
      [OptionReplyType.ErrTlsReqd, "tls-required"],
      [OptionReplyType.ErrShutdown, "shutdown"],
      [OptionReplyType.ErrUnsup, "unsupported"],
    ] as const;
    for (const [type, code] of INFO_REFUSALS) {
      it(`reports ${code}, naming the server, and leaves politely`, async () => {
        let goodbye: Buffer = NO_DATA;
        const address = await suite.serve(async (peer) => {
          await peer.greet();
          await peer.option();
          acknowledge(peer, Option.StructuredReply, OptionReplyType.Ack);
          await peer.option();
          peer.send(encodeOptionReply(Option.Info, type, NO_DATA));
          goodbye = await peer.hangUp();
        });
        const query = { address, exportName: "disk", connectTimeoutMs: CONNECT_TIMEOUT_MS };
        const error = await failureOf(describeExport(query));
        expect(error).to.be.instanceOf(NegotiationError).with.property("code", code);
        expect(error.message).to.include(address.kind === "unix" ? address.path : "");
        await suite.stop();
        expect(goodbye.readUInt32BE(8)).to.equal(Option.Abort);
      });
    }

    it("reports a server that tells everything but the size, and one of plain newstyle", async () => {
      const noSize = await failureOf(
        describeBy(async (peer) => {
          await peer.greet();
          await peer.option();
          acknowledge(peer, Option.StructuredReply, OptionReplyType.Ack);
          await peer.option();
          acknowledge(peer, Option.Info, OptionReplyType.Info, [encodeInfoItem({ kind: "name", name: "x" })]);
        }),
      );
      expect(noSize).to.be.instanceOf(ProtocolError).with.property("code", "no-export-information");
      const plain = await failureOf(
        describeBy(async (peer) => {
          await peer.greet(0);
        }),
      );
      expect(plain).to.be.instanceOf(NegotiationError).with.property("code", "unsupported");
    });

    it("reports sizes that make no sense, naming the server", async () => {
      const error = await failureOf(
        describeBy(async (peer) => {
          await peer.greet();
          await peer.option();
          peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrUnsup, NO_DATA));
          await peer.option();
          const odd = { minimumBytes: 3, preferredBytes: 4096, maximumBytes: 8192 };
          const items = [EXPORT_ITEM, encodeInfoItem({ kind: "block-size", ...odd })];
          acknowledge(peer, Option.Info, OptionReplyType.Info, items);
        }),
      );
      expect(error).to.be.instanceOf(ProtocolError).with.property("code", "bad-block-size");
      expect(error.message).to.include("breaks the NBD protocol");
    });

    it("refuses a name that no export can have, before it connects", async () => {
      const address = { kind: "unix", path: "/nonexistent/socket" } as const;
      const error = await failureOf(describeExport({ address, exportName: "a\0b" }));
      expect(error).to.be.instanceOf(ConfigError).with.property("code", "bad-export-name");
    });
  });

  describe("listMetaContexts", () => {
    async function contextsBy(
      script: (peer: Peer) => Promise<void>,
      queries?: readonly string[],
    ): Promise<string[]> {
      const address = await suite.serve(async (peer) => {
        await peer.greet();
        await script(peer);
        await peer.hangUp();
      });
      const query = { address, exportName: "disk", connectTimeoutMs: CONNECT_TIMEOUT_MS };
      return listMetaContexts(query, queries);
    }

    it("passes the queries on, and tells what matches", async () => {
      let asked: unknown = null;
      const names = await contextsBy(
        async (peer) => {
          await peer.option();
          acknowledge(peer, Option.StructuredReply, OptionReplyType.Ack);
          asked = decodeMetaContextRequest((await peer.option()).data);
          const items = contextItems("qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b");
          acknowledge(peer, Option.ListMetaContext, OptionReplyType.MetaContext, items);
        },
        ["qemu:dirty-bitmap:"],
      );
      expect(asked).to.deep.equal({ exportName: "disk", queries: ["qemu:dirty-bitmap:"] });
      expect(names).to.deep.equal(["qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"]);
    });

    it("reports a server without structured replies, asking nothing", async () => {
      const error = await failureOf(
        contextsBy(async (peer) => {
          await peer.option();
          peer.send(encodeOptionReply(Option.StructuredReply, OptionReplyType.ErrUnsup, NO_DATA));
          expect((await peer.option()).option).to.equal(Option.Abort);
        }),
      );
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "unsupported");
    });

    it("reports a refusal, with the server's text and the export", async () => {
      const error = await failureOf(
        contextsBy(async (peer) => {
          await peer.option();
          acknowledge(peer, Option.StructuredReply, OptionReplyType.Ack);
          await peer.option();
          const text = Buffer.from("gone");
          peer.send(encodeOptionReply(Option.ListMetaContext, OptionReplyType.ErrUnknown, text));
        }),
      );
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "export-unknown");
      expect(error.message).to.include('"disk": gone');
    });
  });
});

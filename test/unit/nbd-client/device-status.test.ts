/** NBD_CMD_BLOCK_STATUS of a device that has selected several metadata contexts. */
import { expect } from "chai";

import { DeviceError } from "../../../src/errors.js";
import type { NbdDevice } from "../../../src/nbd/client/device.js";
import {
  BASE_ALLOCATION,
  ChunkFlag,
  Command,
  CommandFlag,
  TransmissionFlag,
} from "../../../src/nbd/wire/constants.js";
import { encodeBlockStatusChunk, encodeErrorChunk } from "../../../src/nbd/wire/structured-reply.js";
import { failureOf } from "../../tools/outcome.js";
import { ALL_FLAGS } from "./scripted-server.js";
import type { Grants } from "./scripted-server.js";
import { useScriptedServer } from "./scripted-suite.js";

const EIO = 5;

describe("NbdDevice, the status of several contexts", () => {
  const suite = useScriptedServer();

  const BITMAP = "qemu:dirty-bitmap:b0";
  const OTHER = "x-other:o";
  const CONTEXTS = {
    contextId: 3,
    moreContexts: [
      [BITMAP, 5],
      [OTHER, 9],
    ],
  } as const;
  const FILTER = TransmissionFlag.BlockStatusPayload;
  const SIZE = 2 ** 50;

  /** Answers each BLOCK_STATUS with one descriptor of each context of `told`, of the status of its number. */
  async function openTelling(
    grants: Partial<Grants>,
    told: readonly number[],
  ): Promise<{ disk: NbdDevice; seen: unknown[] }> {
    const seen: unknown[] = [];
    const disk = await suite.open(
      { sizeBytes: SIZE, structuredReplies: true, ...CONTEXTS, ...grants },
      async (peer) => {
        for (let request = await peer.requestOrEnd(); request?.type === Command.BlockStatus;) {
          const { flags, offset, lengthBytes, payload } = request;
          seen.push([flags, offset, lengthBytes, payload.toString("hex")]);
          for (const [index, id] of told.entries()) {
            const descriptors = [{ lengthBytes: 2 ** 31 + id, status: id }];
            const isLast = index === told.length - 1 ? ChunkFlag.Done : 0;
            peer.send(encodeBlockStatusChunk(request, isLast, id, descriptors));
          }
          request = await peer.requestOrEnd();
        }
      },
      128,
      "unix",
      [BITMAP, OTHER],
    );
    return { disk, seen };
  }

  const told = (id: number): unknown => [{ lengthBytes: 2 ** 31 + id, status: id }];

  it("comes by one request, which names them where the server takes that and has more", async () => {
    const grants = { extendedHeaders: true, transmissionFlags: ALL_FLAGS | FILTER };
    const { disk, seen } = await openTelling(grants, [9, 3]);
    const answer = await disk.blockStatuses([BASE_ALLOCATION, OTHER], 4096, 2 ** 41, 100);
    expect([...answer]).to.deep.equal([
      [BASE_ALLOCATION, told(3)],
      [OTHER, told(9)],
    ]);
    const payload = "0000020000000000" + "00000003" + "00000009";
    expect(seen).to.deep.equal([[CommandFlag.PayloadLen, 4096, 16, payload]]);
  });

  it("is asked for by name of a single one, too, together with REQ_ONE", async () => {
    const grants = { extendedHeaders: true, transmissionFlags: ALL_FLAGS | FILTER };
    const { disk, seen } = await openTelling(grants, [5]);
    expect(await disk.blockStatus(BITMAP, 0, 2 ** 45, 1)).to.deep.equal(told(5));
    const flags = CommandFlag.PayloadLen | CommandFlag.ReqOne;
    expect(seen).to.deep.equal([[flags, 0, 12, "0000200000000000" + "00000005"]]);
  });

  it("is asked for without names of all that are selected, nor where the server does not take it", async () => {
    const names = [BITMAP, BASE_ALLOCATION, OTHER, BITMAP];
    const grants = { extendedHeaders: true, transmissionFlags: ALL_FLAGS | FILTER };
    const all = await openTelling(grants, [3, 5, 9]);
    expect([...(await all.disk.blockStatuses(names, 512, 2 ** 40, 100))]).to.deep.equal([
      [BITMAP, told(5)],
      [BASE_ALLOCATION, told(3)],
      [OTHER, told(9)],
    ]);
    expect(all.seen).to.deep.equal([[0, 512, 2 ** 40, ""]]);
    await suite.stop();
    const without = await openTelling({ extendedHeaders: true }, [3, 5, 9]);
    expect(await without.disk.blockStatus(BITMAP, 512, 2 ** 40, 100)).to.deep.equal(told(5));
    expect(without.seen).to.deep.equal([[0, 512, 2 ** 40, ""]]);
    await suite.stop();
    // Nobody may announce it then.
    const compact = await openTelling({ transmissionFlags: ALL_FLAGS | FILTER }, [3, 5, 9]);
    expect(await compact.disk.blockStatus(BITMAP, 512, 4096, 100)).to.deep.equal([
      { lengthBytes: 4096, status: 5 },
    ]);
    expect(compact.seen).to.deep.equal([[0, 512, 4096, ""]]);
  });

  it("is not asked for where one is unknown, or there is nothing to tell", async () => {
    const { disk, seen } = await openTelling({}, [3, 5, 9]);
    const error = await failureOf(disk.blockStatuses([BITMAP, "x-no:no"], 0, 512, 1));
    expect(error).to.be.instanceOf(DeviceError).with.property("errno", "ENOTSUP");
    expect(error.message).to.include("x-no:no");
    expect([...(await disk.blockStatuses([], 0, 512, 1))]).to.deep.equal([]);
    expect([...(await disk.blockStatuses([BITMAP], 0, 0, 1))]).to.deep.equal([[BITMAP, []]]);
    await disk.close();
    expect(seen).to.deep.equal([]);
  });

  it("fails as a whole where the server tells of one context and then of an error", async () => {
    const disk = await suite.open(
      { structuredReplies: true, ...CONTEXTS },
      async (peer) => {
        const request = await peer.request();
        peer.send(encodeBlockStatusChunk(request, 0, 3, [{ lengthBytes: 512, status: 0 }]));
        peer.send(encodeErrorChunk(request, ChunkFlag.Done, EIO, "unreadable"));
      },
      128,
      "unix",
      [BITMAP, OTHER],
    );
    const error = await failureOf(disk.blockStatuses([BASE_ALLOCATION, BITMAP], 0, 512, 100));
    expect(error).to.be.instanceOf(DeviceError).with.property("errno", "EIO");
  });
});

/** What each command asks of the device of an export, and how its answer is made. */
import type { Flags } from "../../block/device.js";
import { Flag } from "../../block/device.js";
import { asError } from "../../errors.js";
import { ChunkFlag, Command, CommandFlag } from "../wire/constants.js";
import type { RequestHeader } from "../wire/request.js";
import type { Agreement } from "./agreement.js";
import { blockStatus } from "./block-status.js";
import type { OpenRequest } from "./open-request.js";
import { prefetch } from "./prefetch.js";
import { dataChunk, emptyReadReply, simpleDataReply, successReply } from "./replies.js";
import { type Refusal, type RequestRules, statusQueryOf } from "./request-rules.js";
import { isWorthLookup, sparseRead } from "./sparse-read.js";

/** Who sends the answers. */
export interface DeviceRequestSink {
  /** It is not the device's affair: this is the answer. */
  answered(open: OpenRequest, reply: Buffer): void;
  refused(open: OpenRequest, refusal: Refusal): void;
  /** The device works on it; `reply` is the answer when it is done, an error if it fails. */
  begun(open: OpenRequest, done: Promise<void>, reply: Buffer): void;
  /** Likewise, for an answer of several pieces. */
  begunInPieces(open: OpenRequest, pieces: Promise<Buffer[]>): void;
}

export class DeviceRequests {
  readonly #agreement: Agreement;
  readonly #rules: RequestRules;
  readonly #sink: DeviceRequestSink;
  /** Whether anybody will take what is read ahead. */
  readonly #isWanted: () => boolean;
  /** Settles with the CACHE that came last. */
  #prefetched: Promise<void> = Promise.resolve();

  constructor(agreement: Agreement, rules: RequestRules, sink: DeviceRequestSink, isWanted: () => boolean) {
    this.#agreement = agreement;
    this.#rules = rules;
    this.#sink = sink;
    this.#isWanted = isWanted;
  }

  /** Of a request that refusalOf() does not refuse. @param payload null: it has none */
  perform(open: OpenRequest, payload: Buffer | null): void {
    try {
      this.#perform(open, payload);
    } catch (error) {
      // Devices are others' code: what they throw is as good as what they reject with.
      this.#sink.begun(open, Promise.reject(asError(error)), successReply(open.header));
    }
  }

  #perform(open: OpenRequest, payload: Buffer | null): void {
    const { header } = open;
    const { device } = this.#agreement.export;
    const { offset, lengthBytes } = header;
    if (lengthBytes === 0 && header.type !== Command.Flush) {
      const isRead = header.type === Command.Read;
      const reply = isRead ? emptyReadReply(this.#rules.structuredReplies, header) : successReply(header);
      this.#sink.answered(open, reply);
      return;
    }
    switch (header.type) {
      case Command.Read:
        this.#read(open);
        break;
      case Command.Write:
        if (payload !== null)
          this.#sink.begun(open, device.write(offset, payload, deviceFlags(header)), successReply(header));
        break;
      case Command.Trim:
        this.#sink.begun(open, device.trim(offset, lengthBytes, deviceFlags(header)), successReply(header));
        break;
      case Command.WriteZeroes:
        this.#sink.begun(open, device.zero(offset, lengthBytes, deviceFlags(header)), successReply(header));
        break;
      case Command.Flush:
        this.#sink.begun(open, device.flush(), successReply(header));
        break;
      case Command.BlockStatus:
        this.#blockStatus(open, payload);
        break;
      case Command.Cache:
        this.#prefetch(open);
        break;
    }
  }

  /** One after the other: few bytes of a client make the device read many, and nothing of them has to be taken by it. */
  #prefetch(open: OpenRequest): void {
    const { header } = open;
    const { device } = this.#agreement.export;
    const done = this.#prefetched.then(() => prefetch(device, header, this.#isWanted));
    this.#prefetched = done.catch(() => undefined);
    this.#sink.begun(open, done, successReply(header));
  }

  #blockStatus(open: OpenRequest, payload: Buffer | null): void {
    const { header } = open;
    const { contexts } = this.#agreement;
    if ((header.flags & CommandFlag.PayloadLen) === 0 || payload === null) {
      this.#sink.begunInPieces(open, blockStatus(header, contexts, header.lengthBytes));
      return;
    }
    const selectedIds = contexts.map(({ id }) => id);
    const query = statusQueryOf(this.#rules, header, payload, selectedIds);
    if ("errno" in query) {
      this.#sink.refused(open, query);
      return;
    }
    const asked = contexts.filter(({ id }) => query.contextIds.includes(id));
    this.#sink.begunInPieces(open, blockStatus(header, asked, query.lengthBytes));
  }

  #read(open: OpenRequest): void {
    const { header } = open;
    const { device } = this.#agreement.export;
    if (this.#rules.structuredReplies && isWorthLookup(device, header)) {
      this.#sink.begunInPieces(open, sparseRead(device, header, open.loan));
      return;
    }
    const { pieces, data } = this.#rules.structuredReplies
      ? dataChunk(header, ChunkFlag.Done, header.offset, header.lengthBytes, open.loan)
      : simpleDataReply(header, header.lengthBytes, open.loan);
    const done = device.read(header.offset, data);
    const [whole, ...rest] = pieces;
    if (whole !== undefined && rest.length === 0) {
      this.#sink.begun(open, done, whole);
      return;
    }
    const all = Promise.resolve(done).then(() => pieces);
    this.#sink.begunInPieces(open, all);
  }
}

function deviceFlags(header: RequestHeader): Flags {
  const { flags } = header;
  if (flags === 0) return Flag.None;
  return (
    ((flags & CommandFlag.Fua) === 0 ? 0 : Flag.Fua) |
    ((flags & CommandFlag.NoHole) === 0 ? 0 : Flag.NoHole) |
    ((flags & CommandFlag.FastZero) === 0 ? 0 : Flag.FastZero)
  );
}

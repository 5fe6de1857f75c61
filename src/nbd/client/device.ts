/**
 * An export of an NBD server as a block device.
 *
 * With compact headers, a request longer than their 32 bits tell is cut into legal ones; what the server can't do
 * is refused with ENOTSUP (`info` says so before) or, for FUA, done by a flush. There is no reconnecting: when the
 * connection ends, all that is pending and all that follows rejects with LinkError.
 */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../../block/device.js";
import { Flag } from "../../block/device.js";
import { DeviceError, failedAt } from "../../errors.js";
import { BASE_ALLOCATION, BlockState, Command, CommandFlag } from "../wire/constants.js";
import type { BlockDescriptor } from "../wire/structured-reply.js";
import type { NbdConnection } from "./connection.js";
import type { ExportAbilities } from "./export-info.js";
import { Request, rangeError } from "./request.js";
import { StatusQuery } from "./status-query.js";
import type { Transport } from "./transport.js";

/**
 * The longest zero, trim or block status request with a compact header: the largest power of two, hence aligned for
 * every server, that no 32-bit arithmetic of a server can mistake for a negative number.
 */
const EFFECT_MAXIMUM_BYTES = 2 ** 30;

/** A server without NBD_FLAG_SEND_FLUSH promises nothing that a flush could add to. */
const NOTHING_TO_DO = Promise.resolve();

export class NbdDevice implements BlockDevice {
  /** What the server told in the handshake. */
  readonly info: DeviceInfo;
  readonly canMultiConn: boolean;
  readonly canFastZero: boolean;
  /** NBD_FLAG_ROTATIONAL: a disk that turns, where neighbours are read faster. */
  readonly isRotational: boolean;
  /** Resolves (never rejects) with the reason when the connection has ended, null after close(). */
  readonly ended: Promise<Error | null>;
  readonly #connection: NbdConnection;
  readonly #transport: Transport;
  readonly #abilities: ExportAbilities;
  readonly #effectMaximumBytes: number;
  /** What each WRITE has besides the caller's flags. */
  readonly #writeFlag: number;

  constructor(connection: NbdConnection, transport: Transport, info: DeviceInfo, abilities: ExportAbilities) {
    this.info = info;
    this.canMultiConn = abilities.multiConn;
    this.canFastZero = abilities.fastZero;
    this.isRotational = abilities.rotational;
    this.ended = connection.ended;
    this.#connection = connection;
    this.#transport = transport;
    this.#abilities = abilities;
    this.#effectMaximumBytes = abilities.extendedHeaders ? Number.MAX_SAFE_INTEGER : EFFECT_MAXIMUM_BYTES;
    this.#writeFlag = abilities.extendedHeaders ? CommandFlag.PayloadLen : 0;
  }

  /** NBD_OPT_EXTENDED_HEADERS was granted: zero, trim and extents of any length go in one request. */
  get hasExtendedHeaders(): boolean {
    return this.#abilities.extendedHeaders;
  }

  /** The metadata contexts that were asked for and are there. */
  get metaContexts(): readonly string[] {
    return [...this.#abilities.contexts.keys()];
  }

  /** Requests that are sent and unanswered; at most `maxInFlight`. */
  get inFlight(): number {
    return this.#connection.inFlight;
  }

  /** Bytes handed to the socket so far, the handshake's included. */
  get bytesSent(): number {
    return this.#transport.bytesSent;
  }

  get bytesReceived(): number {
    return this.#transport.bytesReceived;
  }

  /**
   * For how long the oldest unanswered request has been waiting since it was sent; 0 when there is none.
   * @param nowMs by performance.now()
   */
  oldestPendingMs(nowMs: number): number {
    const oldest = this.oldestPending;
    return oldest === null ? 0 : Math.max(0, nowMs - oldest.sentAtMs);
  }

  /** The oldest unanswered request, always the same object while it is that, and when it was sent, by performance.now(); null: none. */
  get oldestPending(): { readonly sentAtMs: number } | null {
    return this.#connection.oldestPending;
  }

  /** Drops the connection at once; pending requests reject with LinkError caused by `reason`. */
  destroy(reason: Error): void {
    this.#connection.destroy(reason);
  }

  close(): Promise<void> {
    return this.#connection.close();
  }

  read(offset: number, into: Buffer): Promise<void> {
    if (into.length === 0) return NOTHING_TO_DO;
    return this.#connection.submit(new Request(Command.Read, 0, offset, into.length, into));
  }

  /**
   * As read(), with the server's answer in one piece (NBD_CMD_FLAG_DF), as it has the content at one time.
   * @throws DeviceError by rejection: EOVERFLOW for more than the server sends so, which is 64 KiB at least; ENOTSUP where it never does
   */
  readWhole(offset: number, into: Buffer): Promise<void> {
    const { structuredReplies, dontFragment } = this.#abilities;
    if (structuredReplies && !dontFragment) return notSupported("reads in one piece");
    if (into.length === 0) return NOTHING_TO_DO;
    const flags = structuredReplies ? CommandFlag.Df : 0;
    return this.#connection.submit(new Request(Command.Read, flags, offset, into.length, into));
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    if (from.length === 0) return NOTHING_TO_DO;
    const written = this.#connection.submit(
      new Request(Command.Write, this.#commandFlags(flags) | this.#writeFlag, offset, from.length, from),
    );
    return this.#durable(written, flags);
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    if (this.info.zero === "none") return notSupported("zero");
    if ((flags & Flag.FastZero) !== 0 && !this.canFastZero) return notSupported("fast zero");
    return this.#durable(this.#withoutPayload(Command.WriteZeroes, offset, lengthBytes, flags), flags);
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    if (this.info.trim === "none") return notSupported("trim");
    return this.#durable(this.#withoutPayload(Command.Trim, offset, lengthBytes, flags & Flag.Fua), flags);
  }

  flush(): Promise<void> {
    if (!this.#abilities.flush) return NOTHING_TO_DO;
    return this.#connection.submit(new Request(Command.Flush, 0, 0, 0, null));
  }

  async extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const descriptors = await this.blockStatus(BASE_ALLOCATION, offset, lengthBytes, maxExtents);
    return descriptors.map(({ lengthBytes: extentBytes, status }) => ({
      lengthBytes: extentBytes,
      hole: (status & BlockState.Hole) !== 0,
      zero: (status & BlockState.Zero) !== 0,
    }));
  }

  /**
   * What a metadata context tells of the range from `offset` on: as extents(), with the context's own statuses.
   * @throws DeviceError ENOTSUP by rejection: the context is not among `metaContexts`
   */
  async blockStatus(
    context: string,
    offset: number,
    lengthBytes: number,
    maxDescriptors: number,
  ): Promise<BlockDescriptor[]> {
    const statuses = await this.blockStatuses([context], offset, lengthBytes, maxDescriptors);
    return statuses.get(context) ?? [];
  }

  /**
   * What several metadata contexts tell of the range, by one request: each as blockStatus() has it, so that one may tell
   * of more of the range than another.
   * @throws DeviceError as blockStatus()
   */
  async blockStatuses(
    contexts: readonly string[],
    offset: number,
    lengthBytes: number,
    maxDescriptors: number,
  ): Promise<Map<string, BlockDescriptor[]>> {
    const idOf = new Map<string, number>();
    for (const context of contexts) {
      const id = this.#abilities.contexts.get(context);
      if (id === undefined) return notSupported(`block status of ${context}`);
      idOf.set(context, id);
    }
    const refusal = rangeError(offset, lengthBytes);
    if (refusal !== null) throw refusal;
    const answers =
      idOf.size === 0 || lengthBytes === 0
        ? new Map<number, BlockDescriptor[]>()
        : await this.#askStatus([...idOf.values()], offset, lengthBytes, maxDescriptors);
    return new Map([...idOf].map(([context, id]) => [context, [...(answers.get(id) ?? [])]]));
  }

  /**
   * Tells the server that the range will be read soon. Nothing happens where it does not want to know. Asks for pieces of
   * what one read may have, also with extended headers: servers read no more ahead for one request, or refuse it.
   */
  cache(offset: number, lengthBytes: number): Promise<void> {
    if (!this.#abilities.cache) return NOTHING_TO_DO;
    return this.#withoutPayload(
      Command.Cache,
      offset,
      lengthBytes,
      Flag.None,
      this.info.blockSize.maximumBytes,
    );
  }

  async #askStatus(
    ids: readonly number[],
    offset: number,
    lengthBytes: number,
    maxDescriptors: number,
  ): Promise<ReadonlyMap<number, readonly BlockDescriptor[]>> {
    const { contexts, statusFilter } = this.#abilities;
    const askedBytes = Math.min(lengthBytes, this.#effectMaximumBytes);
    const query = new StatusQuery(
      askedBytes,
      maxDescriptors,
      ids,
      statusFilter && ids.length < contexts.size,
    );
    const flags =
      (maxDescriptors === 1 ? CommandFlag.ReqOne : 0) | (query.payload === null ? 0 : CommandFlag.PayloadLen);
    const headerBytes = query.payload?.length ?? askedBytes;
    await this.#connection.submit(new Request(Command.BlockStatus, flags, offset, headerBytes, null, query));
    return query.answers;
  }

  /** One after the other, because the pieces of a whole disk would take every slot. */
  async #withoutPayload(
    command: number,
    offset: number,
    lengthBytes: number,
    flags: Flags,
    maximumBytes = this.#effectMaximumBytes,
  ): Promise<void> {
    const refusal = rangeError(offset, lengthBytes);
    if (refusal !== null) throw refusal;
    const end = offset + lengthBytes;
    for (let at = offset; at < end; at += maximumBytes) {
      const pieceBytes = Math.min(maximumBytes, end - at);
      const request = new Request(command, this.#commandFlags(flags), at, pieceBytes, null);
      await this.#connection.submit(request).catch(failedAt(at));
    }
  }

  /** Makes up for a server that doesn't know FUA. */
  #durable(done: Promise<void>, flags: Flags): Promise<void> {
    if ((flags & Flag.Fua) === 0 || this.#abilities.fua) return done;
    return done.then(() => this.flush());
  }

  #commandFlags(flags: Flags): number {
    return (
      ((flags & Flag.Fua) !== 0 && this.#abilities.fua ? CommandFlag.Fua : 0) |
      ((flags & Flag.NoHole) !== 0 ? CommandFlag.NoHole : 0) |
      ((flags & Flag.FastZero) !== 0 ? CommandFlag.FastZero : 0)
    );
  }
}

function notSupported(what: string): Promise<never> {
  return Promise.reject(new DeviceError("ENOTSUP", `the NBD server does not support ${what}`));
}

/**
 * One export over several connections, as one block device.
 *
 * NBD_FLAG_CAN_MULTI_CONN is what allows it: "the server operates entirely without cache, or ... the cache it uses is
 * shared among all connections", so that a request may take any connection, and a flush on one covers every write that
 * was answered before on any: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#transmission-flags
 *
 * Invariants:
 * - All connections told the same of the export.
 * - Each request goes to one of the connections with the fewest requests in flight.
 * - The connections share one fate: when one ends, the others are ended too, for the same reason.
 */
import assert from "node:assert";

import type { BlockDevice, DeviceInfo, Extent, Flags } from "../../block/device.js";
import { LinkError } from "../../errors.js";
import type { BlockDescriptor } from "../wire/structured-reply.js";
import type { NbdDevice } from "./device.js";

export class ParallelNbdDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly canMultiConn: boolean;
  readonly canFastZero: boolean;
  readonly isRotational: boolean;
  readonly hasExtendedHeaders: boolean;
  readonly metaContexts: readonly string[];
  /** Resolves (never rejects) with the reason when all connections have ended, null after close(). */
  readonly ended: Promise<Error | null>;
  /** Why the server took fewer connections than were asked for and it allows; null: it did not. */
  readonly refusal: Error | null;
  readonly #devices: readonly NbdDevice[];
  /** Where the search for the least busy connection starts, so that idle ones take turns. */
  #turn = 0;
  /** The connection that ended first: what is asked from then on is refused by it, with its reason. */
  #firstEnded: NbdDevice | null = null;

  /** Takes over the devices, which are one at least and alike. */
  constructor(devices: readonly NbdDevice[], refusal: Error | null = null) {
    const [first] = devices;
    this.refusal = refusal;
    assert(first !== undefined, "there must be at least one connection");
    this.info = first.info;
    this.canMultiConn = first.canMultiConn;
    this.canFastZero = first.canFastZero;
    this.isRotational = first.isRotational;
    this.hasExtendedHeaders = first.hasExtendedHeaders;
    this.metaContexts = first.metaContexts;
    this.#devices = devices;
    for (const device of devices)
      void device.ended.then((reason) => {
        this.#oneEnded(device, reason);
      });
    this.ended = Promise.all(devices.map((device) => device.ended)).then(
      () => this.#firstEnded?.ended ?? null,
    );
  }

  /** How many there are: 1 where the server doesn't allow more, and as many as it took where it does. */
  get connections(): number {
    return this.#devices.length;
  }

  /** Requests that are sent and unanswered, on all connections. */
  get inFlight(): number {
    return this.#devices.reduce((sum, device) => sum + device.inFlight, 0);
  }

  /** Bytes handed to the sockets so far, the handshakes' included. */
  get bytesSent(): number {
    return this.#devices.reduce((sum, device) => sum + device.bytesSent, 0);
  }

  get bytesReceived(): number {
    return this.#devices.reduce((sum, device) => sum + device.bytesReceived, 0);
  }

  /**
   * For how long the oldest unanswered request has been waiting since it was sent; 0 when there is none.
   * @param nowMs by performance.now()
   */
  oldestPendingMs(nowMs: number): number {
    return Math.max(...this.#devices.map((device) => device.oldestPendingMs(nowMs)));
  }

  /** Drops the connections at once; pending requests reject with LinkError caused by `reason`. */
  destroy(reason: Error): void {
    for (const device of this.#devices) device.destroy(reason);
  }

  async close(): Promise<void> {
    await Promise.all(this.#devices.map((device) => device.close()));
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#next().read(offset, into);
  }

  /** As NbdDevice. */
  readWhole(offset: number, into: Buffer): Promise<void> {
    return this.#next().readWhole(offset, into);
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#next().write(offset, from, flags);
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#next().zero(offset, lengthBytes, flags);
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#next().trim(offset, lengthBytes, flags);
  }

  /** Covers the writes of all connections whose promises have resolved: the server has replied to each of them. */
  flush(): Promise<void> {
    return this.#next().flush();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#next().extents(offset, lengthBytes, maxExtents);
  }

  /** As NbdDevice. */
  blockStatus(
    context: string,
    offset: number,
    lengthBytes: number,
    maxDescriptors: number,
  ): Promise<BlockDescriptor[]> {
    return this.#next().blockStatus(context, offset, lengthBytes, maxDescriptors);
  }

  /** As NbdDevice. */
  blockStatuses(
    contexts: readonly string[],
    offset: number,
    lengthBytes: number,
    maxDescriptors: number,
  ): Promise<Map<string, BlockDescriptor[]>> {
    return this.#next().blockStatuses(contexts, offset, lengthBytes, maxDescriptors);
  }

  /** As NbdDevice. */
  cache(offset: number, lengthBytes: number): Promise<void> {
    return this.#next().cache(offset, lengthBytes);
  }

  #next(): NbdDevice {
    if (this.#firstEnded !== null) return this.#firstEnded;
    const count = this.#devices.length;
    let best: NbdDevice | undefined;
    for (let i = 0; i < count; i++) {
      const device = this.#devices[(this.#turn + i) % count];
      if (device !== undefined && (best === undefined || device.inFlight < best.inFlight)) best = device;
    }
    this.#turn = (this.#turn + 1) % count;
    assert(best !== undefined);
    return best;
  }

  #oneEnded(ended: NbdDevice, reason: Error | null): void {
    if (this.#firstEnded !== null) return;
    this.#firstEnded = ended;
    for (const device of this.#devices) {
      // A server that shuts down still answers what is in flight elsewhere; close() never rejects.
      if (reason === null || (reason instanceof LinkError && reason.code === "server-shutdown"))
        void device.close();
      else device.destroy(reason);
    }
  }
}

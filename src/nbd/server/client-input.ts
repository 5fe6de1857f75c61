/**
 * The reading side of a connection: from the socket into memory of our own, and from there through the receiver, as far as there
 * is room for what comes next.
 *
 * Invariants:
 * - The socket is paused while the input is stalled, that is, while the receiver keeps an unparsed rest; and when a long payload has
 *   used up the client's share. Both go on in the client's turn (turns.ts).
 * - What is being parsed, or waits to be, is in use: nothing is received over it.
 * - While TLS is being started nothing is parsed (starttls.ts).
 */
import type { Socket } from "node:net";

import type { SharedBuffer } from "../../block/buffer-pool.js";
import { ProtocolError, asError, describeError } from "../../errors.js";
import { readInto, type Reader } from "../../net/read-into.js";
import type { RequestReceiver } from "../receiver.js";
import { DIRECT_READ_BYTES } from "./limits.js";
import { ReceiveBuffer } from "./receive-buffer.js";
import type { StartTls } from "./starttls.js";
import type { ClientTurn } from "./turns.js";

/** What is known of the bytes that are being parsed. */
export interface Incoming {
  /** The slab in which the payloads lie; null: they have memory of their own. */
  readonly source: SharedBuffer | null;
  /** Whether they may stay there; if not they are to be copied. */
  readonly mayStay: boolean;
  /** They have just come, and have not waited for the client's turn. */
  readonly hasJustCome: boolean;
}

export interface ClientInputParts {
  readonly receiver: RequestReceiver;
  readonly turn: ClientTurn;
  readonly upgrade: StartTls;
  /** Whether nothing that the client sends counts any more: what arrives is dropped. */
  readonly isOver: () => boolean;
  /** Whether another option or request may be taken up, in its turn. */
  readonly hasRoom: () => boolean;
  /** What came ends the connection. @param err with a stack that is of use */
  readonly violated: (code: string, message: string, err?: Error) => void;
}

export class ClientInput implements Reader, Incoming {
  readonly #parts: ClientInputParts;
  #stream: Socket;
  readonly #buffer = new ReceiveBuffer();
  /** Where the next bytes go: into the rest of a payload, or into #buffer. */
  #isDirect = false;
  #source: SharedBuffer | null = null;
  #hasJustCome = true;
  #isStalled = false;

  /** @param stream paused */
  constructor(stream: Socket, parts: ClientInputParts) {
    this.#parts = parts;
    this.#stream = stream;
    this.#read();
  }

  /** As Incoming. */
  get source(): SharedBuffer | null {
    return this.#source;
  }

  get mayStay(): boolean {
    return this.#buffer.mayStay;
  }

  get hasJustCome(): boolean {
    return this.#hasJustCome;
  }

  /** The receiver keeps an unparsed rest. */
  get isStalled(): boolean {
    return this.#isStalled;
  }

  /** The client's bytes come by this stream from now on. */
  readFrom(secured: Socket): void {
    this.#stream = secured;
    this.#read();
  }

  /** The client has its turn. */
  goOn(): void {
    const { hasRoom, receiver, upgrade } = this.#parts;
    const mayRead = !this.#isStalled || (hasRoom() && this.#parse(() => receiver.resume(), false));
    if (mayRead && !upgrade.isUnderWay) this.#stream.resume();
  }

  /** The stream is closed. */
  close(): void {
    this.#releaseSource();
    this.#buffer.close();
  }

  #read(): void {
    const { isOver, upgrade, receiver } = this.#parts;
    const stream = this.#stream;
    readInto(stream, this);
    stream.on("data", (chunk: Buffer) => {
      if (isOver()) return;
      const goesOn = upgrade.awaitsHello
        ? upgrade.push(stream, chunk)
        : this.#parse(() => receiver.push(chunk), true);
      if (!goesOn) stream.pause();
    });
  }

  /** As Reader. */
  target(): Buffer {
    const { isOver, receiver } = this.#parts;
    const body = this.#isStalled || isOver() ? null : receiver.bodyTarget();
    this.#isDirect = body !== null;
    return body?.subarray(0, DIRECT_READ_BYTES) ?? this.#buffer.room();
  }

  /** As Reader. */
  received(lengthBytes: number): boolean {
    const { isOver, receiver, turn, upgrade } = this.#parts;
    if (isOver()) return true;
    if (this.#isDirect) {
      this.#parse(() => {
        receiver.bodyReceived(lengthBytes);
        return true;
      }, true);
      turn.spend(lengthBytes);
      if (!turn.isSpent) return true;
      turn.await();
      return false;
    }
    const chunk = this.#buffer.received(lengthBytes);
    if (upgrade.awaitsHello) return upgrade.push(this.#stream, chunk);
    this.#source = this.#buffer.slab;
    this.#source?.hold();
    return this.#parse(() => receiver.push(chunk), true);
  }

  /**
   * Runs the receiver over what there is; false when it kept a rest.
   * A violation ends this connection and nothing else; so does what an export's hooks throw, or a mistake of ours.
   */
  #parse(run: () => boolean, hasJustCome: boolean): boolean {
    const { hasRoom, turn, upgrade, violated } = this.#parts;
    this.#isStalled = false;
    this.#hasJustCome = hasJustCome;
    try {
      this.#isStalled = !run();
      if (upgrade.isUnderWay) this.#hold();
    } catch (error) {
      if (error instanceof ProtocolError) violated(error.code, error.message);
      else violated("internal-error", `internal error: ${describeError(error)}`, asError(error));
    }
    if (!this.#isStalled) this.#releaseSource();
    else if (hasRoom()) turn.await();
    return !this.#isStalled;
  }

  /** From the client's STARTTLS to its first TLS message only our reply may pass. */
  #hold(): void {
    if (this.#isStalled) {
      throw new ProtocolError("plaintext-injection", "plaintext came behind NBD_OPT_STARTTLS");
    }
    this.#stream.pause();
  }

  #releaseSource(): void {
    this.#source?.release();
    this.#source = null;
  }
}

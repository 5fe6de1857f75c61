/**
 * Reading a socket into memory of one's own, as net.connect() offers with `onread`; Node has no such option for the
 * connections that a server accepts, nor for a TLS session over a socket. Without it each read allocates memory outside of
 * V8's heap, 64 KiB of a socket and 16 KiB of a TLS session, which at a gigabyte a second is what the garbage collector then
 * spends most of the time on.
 *
 * So the socket gets what `onread` would have given it. That is not public; where it can't be done the caller reads as usual.
 */
import type { Socket } from "node:net";
import { TLSSocket } from "node:tls";

export interface Reader {
  /** Where the next bytes are to go; at least one fits. Asked once before each read. */
  target(): Buffer;
  /** So many bytes are there now. @returns whether to read on; if not, resume() does */
  received(lengthBytes: number): boolean;
}

/** What `onread` sets. */
interface ReadState {
  kBuffer: Uint8Array;
  kBufferGen: () => Uint8Array;
  kBufferCb: (lengthBytes: number, buffer: Uint8Array) => boolean;
}

interface StreamHandle {
  useUserBuffer(buffer: Uint8Array): void;
}

/** The plaintext of a TLS record. */
const RECORD_BYTES = 16 * 1024;

/**
 * From the next bytes on. A TLS session hands over all that it has read, though it was told to stop: what comes while the
 * socket is paused, 64 KiB and a record at most, is kept by the stream and comes as "data", in order; so that has to be
 * listened to as well.
 * @param socket of which no byte is kept, if there is no TLS
 * @returns false where it can't be done: all comes as "data"
 */
export function readInto(socket: Socket, reader: Reader): boolean {
  const handle = handleOf(socket);
  if (handle === null) return false;
  const state = socket instanceof TLSSocket ? recordsInto(socket, reader) : bytesInto(reader);
  if (!setState(socket, state)) return false;
  handle.useUserBuffer(state.kBuffer);
  return true;
}

function bytesInto(reader: Reader): ReadState {
  return {
    kBuffer: reader.target(),
    kBufferGen: () => reader.target(),
    kBufferCb: (lengthBytes) => reader.received(lengthBytes),
  };
}

/** While the stream keeps bytes, further ones must not go before them, nor to where the kept ones are to go. */
function recordsInto(socket: Socket, reader: Reader): ReadState {
  let spare: Buffer | null = null;
  let isSpare = false;
  const next = (): Buffer => {
    isSpare = socket.isPaused() || socket.readableLength > 0;
    return isSpare ? (spare ??= Buffer.allocUnsafeSlow(RECORD_BYTES)) : reader.target();
  };
  return {
    kBuffer: next(),
    kBufferGen: next,
    kBufferCb: (lengthBytes, buffer) => {
      if (isSpare) return socket.push(Buffer.from(buffer.subarray(0, lengthBytes)));
      if (reader.received(lengthBytes)) return true;
      socket.pause();
      return false;
    },
  };
}

function handleOf(socket: Socket): StreamHandle | null {
  const handle: unknown = Reflect.get(socket, "_handle");
  return typeof handle === "object" && handle !== null && "useUserBuffer" in handle
    ? (handle as StreamHandle)
    : null;
}

/** Under symbols that are known by their names. */
function setState(socket: Socket, state: ReadState): boolean {
  symbols ??= symbolsOf(socket);
  if (symbols === null || !(symbols.kBuffer in socket)) return false;
  Reflect.set(socket, symbols.kBuffer, state.kBuffer);
  Reflect.set(socket, symbols.kBufferGen, state.kBufferGen);
  Reflect.set(socket, symbols.kBufferCb, state.kBufferCb);
  return true;
}

/** The same for all sockets; looked up once, for a thousand of them may come in a second. */
let symbols: Record<keyof ReadState, symbol> | null = null;

function symbolsOf(socket: Socket): typeof symbols {
  const all = Object.getOwnPropertySymbols(socket);
  const named = (name: string): symbol | undefined => all.find(({ description }) => description === name);
  const [kBuffer, kBufferGen, kBufferCb] = [named("kBuffer"), named("kBufferGen"), named("kBufferCb")];
  if (kBuffer === undefined || kBufferGen === undefined || kBufferCb === undefined) return null;
  return { kBuffer, kBufferGen, kBufferCb };
}

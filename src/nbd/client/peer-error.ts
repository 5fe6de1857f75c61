import { NegotiationError, ProtocolError } from "../../errors.js";

/** A decoder doesn't know whose bytes it reads; the operator wants to. */
export function withPeer(error: Error, peer: string): Error {
  if (error instanceof ProtocolError) {
    return new ProtocolError(error.code, `${peer} breaks the NBD protocol: ${error.message}`, {
      cause: error,
    });
  }
  if (error instanceof NegotiationError) {
    return new NegotiationError(error.code, `${peer}: ${error.message}`, { cause: error });
  }
  return error;
}

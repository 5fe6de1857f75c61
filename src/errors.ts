/**
 * All errors that this project throws on purpose.
 *
 * One class for each way of handling: a DeviceError becomes an error reply and the connection lives,
 * a ProtocolError closes the connection, a LinkError makes the primary mark blocks dirty and reconnect,
 * a StateError tells the operator that now is not the time, and so on. Handle by class and `code`,
 * never by message.
 */

/** The errnos that cross a block device interface; the NBD document knows the same set. */
export type Errno = "EPERM" | "EIO" | "ENOMEM" | "EINVAL" | "ENOSPC" | "EOVERFLOW" | "ENOTSUP" | "ESHUTDOWN";

/** Base class: `code` is a stable kebab-case identifier, `message` one line for a person. */
export class ReplError extends Error {
  readonly code: string;

  constructor(code: string, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** A request to a block device failed; the device goes on living. */
export class DeviceError extends ReplError {
  readonly errno: Errno;
  /** The byte of the device at which it failed; null where that is not known. */
  readonly offset: number | null;

  constructor(errno: Errno, message: string, options?: { cause?: unknown; offset?: number | null }) {
    super(errno, message, options);
    this.errno = errno;
    this.offset = options?.offset ?? null;
  }
}

/**
 * This node does not do it any more, though another one will: a client that connects again is better off without an answer, for what
 * it was not told of it asks for again there. Whoever has to be told something is told ESHUTDOWN.
 */
export class AskAgainError extends DeviceError {
  constructor(message: string) {
    super("ESHUTDOWN", message);
  }
}

/** The peer broke the protocol; its connection is closed. */
export class ProtocolError extends ReplError {}

/** The peer speaks the protocol but refuses what was asked of it (NBD_REP_ERR_*, a QMP error). */
export class NegotiationError extends ReplError {}

/** The connection to a peer is gone or too slow to be of use. */
export class LinkError extends ReplError {}

/** The operation is not possible in the node's present state (exit code 3). */
export class StateError extends ReplError {}

/** A file of the state directory is missing, foreign or damaged: the node refuses to start. */
export class MetadataError extends ReplError {}

/** What the operator wrote (option, config file, argument) can't be used (exit code 2). */
export class ConfigError extends ReplError {}

/** The node to be commanded can't be reached (exit code 4). */
export class UnreachableError extends ReplError {}

/** One line that says what went wrong, for a log or a terminal, whatever was thrown. */
export function describeError(error: unknown): string {
  try {
    return String(error instanceof Error ? error.message : error);
  } catch {
    // Others' code may throw what has no text, such as an object without a prototype.
    return "an error that has no text";
  }
}

/** What was thrown, as an Error; for `cause` chains and promise rejections. */
export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(describeError(error));
}

/** Of Node's errors, those that tell of a full disk. */
const FULL = ["ENOSPC", "EDQUOT", "EFBIG"];

/** The errno to report for whatever a device threw; anything unforeseen is EIO. */
export function errnoOf(error: unknown): Errno {
  if (error instanceof DeviceError) return error.errno;
  return FULL.some((code) => isErrno(error, code)) ? "ENOSPC" : "EIO";
}

/** For catch() of a part of a request: a DeviceError that knows no better gets the offset at which that part begins. */
export function failedAt(offset: number): (error: unknown) => never {
  return (error) => {
    if (!(error instanceof DeviceError) || error.offset !== null || error instanceof AskAgainError)
      throw error;
    throw new DeviceError(error.errno, error.message, { cause: error, offset });
  };
}

/** Whether it is an error of Node's of this code, like ENOENT or ERR_WORKER_INIT_FAILED. */
export function isErrno(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}

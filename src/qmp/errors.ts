/** Errors on the QMP wire: QEMU's shape, and two members of ours that tell a program what to do about it. */
import { ConfigError, ReplError, StateError } from "../errors.js";

/** Code of the refusal by a node that is about to end: it has begun nothing. */
export const STOPPING = "stopping";

/** QEMU's classes (qapi/error.json). */
type QmpErrorClass =
  "GenericError" | "CommandNotFound" | "DeviceNotActive" | "DeviceNotFound" | "KVMMissingCap";

/** How the asker handles it: not now (exit code 3), ask differently (2), or it went wrong (1). */
export type QmpErrorKind = "state" | "config" | "failed";

/** The `error` member of a reply. `code` and `kind` are ours; QMP clients ignore what they don't know. */
export interface QmpErrorBody {
  readonly class: string;
  readonly desc: string;
  readonly code: string;
  readonly kind: QmpErrorKind;
}

/** An error reply: thrown by a handler to choose the class, and by the client for what it received. */
export class QmpError extends ReplError {
  readonly qmpClass: string;
  readonly kind: QmpErrorKind;

  constructor(qmpClass: string, code: string, description: string, kind: QmpErrorKind = "failed") {
    super(code, description);
    this.qmpClass = qmpClass;
    this.kind = kind;
  }
}

/** The reply for whatever a handler threw. */
export function errorBody(error: unknown): QmpErrorBody {
  if (error instanceof QmpError) {
    return { class: error.qmpClass, desc: error.message, code: error.code, kind: error.kind };
  }
  if (error instanceof ReplError) {
    return { class: "GenericError", desc: error.message, code: error.code, kind: kindOf(error) };
  }
  return {
    class: "GenericError",
    desc: "internal error, see the log",
    code: "internal-error",
    kind: "failed",
  };
}

export function commandNotFound(description: string): QmpError {
  return new QmpError("CommandNotFound" satisfies QmpErrorClass, "command-not-found", description);
}

function kindOf(error: ReplError): QmpErrorKind {
  if (error instanceof StateError) return "state";
  return error instanceof ConfigError ? "config" : "failed";
}

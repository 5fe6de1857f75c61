/** What it means that a link was lost to an error: whether it is news, and whether an operator has to look. */
import { LinkError, NegotiationError, ProtocolError, StateError, UnreachableError } from "../../errors.js";
import { QmpError } from "../../qmp/errors.js";

/** Whether it is no news that this came after that. A split brain's text tells how much has changed, which grows as guests write. */
export function isSameLoss(last: Error, error: Error): boolean {
  if (last.message === error.message) return true;
  // Only a state has a code of its own: "EIO", or any error of a QEMU, may be for another reason.
  return (
    last instanceof QmpError &&
    error instanceof QmpError &&
    error.kind === "state" &&
    last.code === error.code
  );
}

/** Whether the replica is there but can't be used, so that an operator has to look. */
export function isRefusal(error: unknown): boolean {
  if (error instanceof UnreachableError || error instanceof LinkError) return false;
  return (
    error instanceof NegotiationError ||
    error instanceof ProtocolError ||
    error instanceof StateError ||
    error instanceof QmpError
  );
}

import type { Loan } from "../../block/buffer-pool.js";
import type { RequestHeader } from "../wire/request.js";
import type { Refusal } from "./request-rules.js";

/** A request from its header to the moment the kernel has its answer. */
export interface OpenRequest {
  readonly header: RequestHeader;
  /** Null: it goes to the device. */
  readonly refusal: Refusal | null;
  readonly isWrite: boolean;
  /** What it holds of the connection's and the server's memory. */
  readonly memoryBytes: number;
  /** Where its payload is: until the device is done with a write, until the kernel has taken a read. */
  readonly loan: Loan;
}

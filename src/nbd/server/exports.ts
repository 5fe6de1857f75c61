/** The exports of a server, by name. */
import { blockSizeMistake } from "../../block/block-size.js";
import type { BlockDevice } from "../../block/device.js";
import { ConfigError, StateError } from "../../errors.js";
import { MINIMUM_BLOCK_LIMIT_BYTES } from "../block-size.js";
import { BASE_ALLOCATION } from "../wire/constants.js";
import { isString } from "../wire/strings.js";
import type { BlockDescriptor } from "../wire/structured-reply.js";

/** What became of a connection, once nothing of it is left. */
export interface ConnectionSummary {
  readonly peer: string;
  /** NBD_CMD_DISC was seen and every request before it answered. */
  readonly clean: boolean;
  /** Write-like requests (WRITE, TRIM, WRITE_ZEROES) received, even partly, whose reply the kernel did not take. */
  readonly unansweredWrites: number;
  /** READ requests received. */
  readonly reads: number;
  /** Write-like requests received in all. */
  readonly writes: number;
  /** Write-like requests answered with an error. */
  readonly failedWrites: number;
}

/** Is told about one connection to an export. */
export interface ConnectionObserver {
  /**
   * Before the connection's first write-like request that would be carried out is.
   * @returns null, or why this connection may not write, in one line: it is refused each with EPERM
   */
  firstWrite?(): string | null;
  /** The connection has ended and its last device request has settled. What it throws, or a promise of it rejects with, is logged. */
  closed?(summary: ConnectionSummary): unknown;
}

/** What NBD_CMD_BLOCK_STATUS can tell of an export. */
export interface MetadataContext {
  /** Namespace, colon, leaf. */
  readonly name: string;
  /**
   * Describes the range from `offset` on: one descriptor or more, none empty, none past the range. Statuses have 32 bits;
   * of a longer one the lower 32 are told.
   * @throws DeviceError by rejection
   */
  describe(offset: number, lengthBytes: number, maxDescriptors: number): Promise<BlockDescriptor[]>;
}

export interface NbdExport {
  readonly name: string;
  readonly description?: string;
  /** Stands for the empty name where there are several exports. */
  readonly isDefault?: boolean;
  readonly readOnly: boolean;
  /** Wrapped by checked(); the server never calls it out of range. */
  readonly device: BlockDevice;
  /** Metadata contexts besides base:allocation. */
  readonly contexts?: readonly MetadataContext[];
  /** Asked before a client may use the export: null to admit it, or the reason not to, in one line. */
  refusal?(): string | null;
  /** A client enters transmission. */
  connected?(connection: { readonly peer: string }): ConnectionObserver;
}

/** Invariant: names are unique. Exports keep the order they were added in. */
export class ExportTable {
  readonly #exports = new Map<string, NbdExport>();

  /** @throws StateError export-exists; ConfigError bad-export: no client could live with it */
  add(added: NbdExport): void {
    requireServable(added);
    if (this.#exports.has(added.name)) {
      throw new StateError("export-exists", `there is an export "${added.name}" already`);
    }
    this.#exports.set(added.name, added);
  }

  /** Whether there was one. Its connections live on: see NbdServer.disconnect(). */
  remove(name: string): boolean {
    return this.#exports.delete(name);
  }

  /** The empty name also finds the only export, or the one that is the default. */
  get(name: string): NbdExport | undefined {
    const found = this.#exports.get(name);
    if (found !== undefined || name !== "") return found;
    const all = this.list();
    return all.length === 1 ? all[0] : all.find((candidate) => candidate.isDefault === true);
  }

  list(): NbdExport[] {
    return [...this.#exports.values()];
  }
}

function requireServable(served: NbdExport): void {
  const mistake = mistakeOf(served);
  if (mistake !== null)
    throw new ConfigError("bad-export", `can't serve the export "${served.name}": ${mistake}`);
}

/** Null: clients can live with it. */
function mistakeOf({ name, description = "", contexts = [], device }: NbdExport): string | null {
  const contextNames = [BASE_ALLOCATION, ...contexts.map((context) => context.name)];
  if (![name, description, ...contextNames].every(isString))
    return "its name, its description and its contexts' names have at most 4096 bytes of UTF-8 without NUL";
  if (!contextNames.every((each) => /^[^:]+:/.test(each)))
    return "its contexts' names are to have a namespace, as in qemu:dirty-bitmap:backup";
  if (new Set(contextNames).size < contextNames.length)
    return `its contexts are to have different names, none of them ${BASE_ALLOCATION}`;
  const { sizeBytes, blockSize } = device.info;
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) return `it can't have ${sizeBytes} bytes`;
  if (blockSize.minimumBytes > MINIMUM_BLOCK_LIMIT_BYTES)
    return `its blocks can have ${MINIMUM_BLOCK_LIMIT_BYTES} bytes at most, not ${blockSize.minimumBytes}: checked() makes smaller ones of them`;
  return blockSizeMistake(blockSize);
}

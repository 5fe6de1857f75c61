/** A real NbdServer on a unix socket of its own, its log kept for the test to look at. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Writable } from "node:stream";

import { pino } from "pino";

import { checked } from "../../src/block/checked.js";
import type { BlockDevice } from "../../src/block/device.js";
import type { Address } from "../../src/net/address.js";
import type { ConnectionSummary, NbdExport } from "../../src/nbd/server/exports.js";
import { ExportTable } from "../../src/nbd/server/exports.js";
import type { NbdServerOptions } from "../../src/nbd/server/server.js";
import { NbdServer } from "../../src/nbd/server/server.js";

export interface NbdServerHarness {
  readonly server: NbdServer;
  readonly exports: ExportTable;
  /** Of the unix listener. */
  readonly address: Address;
  /** For tools: the socket's path. */
  readonly path: string;
  readonly directory: string;
  /** Every line the server logged, parsed. */
  readonly log: readonly { readonly level: number; readonly code?: string; readonly msg: string }[];
  /** Every connection of every export made by exportOf(). */
  readonly summaries: ConnectionSummary[];
  /** Exports `device`, wrapped by checked(), and records the summaries of its connections. */
  add(name: string, device: BlockDevice, options?: Partial<NbdExport>): void;
  close(): Promise<void>;
}

export async function startNbdServer(options: Partial<NbdServerOptions> = {}): Promise<NbdServerHarness> {
  const directory = await mkdtemp(join(tmpdir(), "nbd-server-"));
  const path = join(directory, "nbd.sock");
  const log: { level: number; msg: string }[] = [];
  const sink = new Writable({
    write(line: Buffer, _encoding, done) {
      log.push(JSON.parse(line.toString()) as { level: number; msg: string });
      done();
    },
  });
  const exports = new ExportTable();
  const summaries: ConnectionSummary[] = [];
  const server = new NbdServer({ exports, log: pino({ level: "info" }, sink), ...options });
  const address = await server.listen({ kind: "unix", path });
  return {
    server,
    exports,
    address,
    path,
    directory,
    log,
    summaries,
    add: (name, device, rest = {}) => {
      const connected = (): { closed: (summary: ConnectionSummary) => void } => ({
        closed: (summary) => summaries.push(summary),
      });
      exports.add({ name, readOnly: false, device: checked(device), connected, ...rest });
    },
    close: async () => {
      await server.close(1000);
      await rm(directory, { recursive: true });
    },
  };
}

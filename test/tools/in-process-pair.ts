/**
 * A primary and a secondary in this process, linked over unix sockets as src/app links them: the real NBD and QMP
 * servers and clients, on media that outlive either node.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { pino } from "pino";

import { ReplicationServer } from "../../src/app/replication-server.js";
import { checked } from "../../src/block/checked.js";
import type { BlockDevice } from "../../src/block/device.js";
import { LinkError } from "../../src/errors.js";
import type { Address } from "../../src/net/address.js";
import { connectNbd } from "../../src/nbd/client/connect.js";
import type { NbdDevice } from "../../src/nbd/client/device.js";
import { ExportTable } from "../../src/nbd/server/exports.js";
import { NbdServer } from "../../src/nbd/server/server.js";
import { secondaryPairCommands } from "../../src/qmp/commands/pair.js";
import { nodeCommands } from "../../src/qmp/commands/node.js";
import { QmpServer } from "../../src/qmp/server.js";
import { Primary } from "../../src/replication/primary/primary.js";
import {
  CHECKPOINT_EVENT,
  CHECKPOINT_FAILED_EVENT,
  ROLLBACK_LOST_EVENT,
  writerExport,
} from "../../src/replication/protocol.js";
import type { AckMode, CongestionPolicy, ReplicaErrorPolicy } from "../../src/status.js";
import { FailingDevice } from "./failing-device.js";
import { MemoryDevice } from "./memory-device.js";
import { MemoryStateDirectory } from "./memory-state-directory.js";
import { turns } from "./outcome.js";
import { SecondaryNode, type StartOptions } from "./secondary-node.js";

const QUIET = pino({ level: "silent" });
/** Not an expectation: the peer is in this process. */
const REPLICA_TIMEOUT_MS = 10_000;
const CLOSE_DEADLINE_MS = 2000;

export interface InProcessPairOptions {
  /** Of the disks disk0, disk1, ... */
  readonly sizes: readonly number[];
  readonly ackMode?: AckMode;
  readonly onCongestion?: CongestionPolicy;
  readonly onReplicaError?: ReplicaErrorPolicy;
}

/** The listeners of one life of the secondary. */
interface Servers {
  readonly writers: ReplicationServer;
  readonly view: NbdServer;
  readonly qmp: QmpServer;
}

export class InProcessPair {
  readonly node: SecondaryNode;
  /** What the disks of the nodes lie on. */
  readonly primaryMedia: readonly MemoryDevice[];
  readonly secondaryMedia: readonly MemoryDevice[];
  /** Where faults of the primary disks are injected. */
  readonly primaryDisks: readonly FailingDevice[];
  readonly primaryState = new MemoryStateDirectory();
  readonly #directory: string;
  readonly #options: InProcessPairOptions;
  #servers: Servers | null = null;
  #primary: Primary | null = null;
  #waiting: (() => void)[] = [];
  readonly #writers: NbdDevice[] = [];

  private constructor(
    options: InProcessPairOptions,
    directory: string,
    node: SecondaryNode,
    media: MemoryDevice[],
  ) {
    this.#options = options;
    this.#directory = directory;
    this.node = node;
    this.secondaryMedia = media;
    this.primaryMedia = options.sizes.map((sizeBytes) => new MemoryDevice(sizeBytes));
    this.primaryDisks = this.primaryMedia.map((medium) => new FailingDevice(medium));
  }

  /** Both nodes run; the primary has no replica yet. */
  static async open(options: InProcessPairOptions): Promise<InProcessPair> {
    const directory = await mkdtemp(join(tmpdir(), "pair-"));
    const media = options.sizes.map((sizeBytes) => new MemoryDevice(sizeBytes));
    const node = await SecondaryNode.open({ media, state: new MemoryStateDirectory() });
    const pair = new InProcessPair(options, directory, node, media);
    await pair.#serve();
    await pair.#openPrimary();
    return pair;
  }

  get primary(): Primary {
    if (this.#primary === null) throw new Error("the primary does not run");
    return this.#primary;
  }

  /** What a guest sees. */
  guest(index = 0): BlockDevice {
    const disk = this.primary.disks[index];
    if (disk === undefined) throw new RangeError(`there is no disk ${index}`);
    return disk.guestExport;
  }

  view(index = 0): BlockDevice {
    return this.node.view(index);
  }

  get replicationAddress(): Address {
    return { kind: "unix", path: join(this.#directory, "replication.sock") };
  }

  get qmpAddress(): Address {
    return { kind: "unix", path: join(this.#directory, "qmp.sock") };
  }

  /** A client of the view's listener. */
  connectView(index = 0): Promise<NbdDevice> {
    return connectNbd({ address: this.#viewAddress, exportName: `disk${index}` });
  }

  /** As the primary that introduced itself; if none has, a writer that never does, as a QEMU primary. */
  connectWriter(index = 0): Promise<NbdDevice> {
    const { session, writer } = this.node.secondary.tracker;
    const exportName =
      session === null || writer === null ? `disk${index}` : writerExport(`disk${index}`, writer);
    return this.#connect(exportName);
  }

  /** As a writer that never introduced itself, whoever else has. */
  connectPlainly(index = 0): Promise<NbdDevice> {
    return this.#connect(`disk${index}`);
  }

  /** Breaks these connections; resolves as writersGone(). */
  loseWriters(): Promise<void> {
    for (const writer of this.#writers) writer.destroy(new Error("gone"));
    return this.writersGone();
  }

  /** Resolves when the secondary has noticed that nobody is connected any more. */
  async writersGone(): Promise<void> {
    while (this.node.connections.connections().length > 0) await turns();
  }

  /** Begins to replicate; resolves when the checkpoint after the first copy is taken. */
  async attach(): Promise<void> {
    const { replicationAddress: address, qmpAddress: control } = this;
    await this.primary.attach({ address, control, uri: "in this process" });
    await this.synchronised();
  }

  checkpoint(): Promise<number> {
    return this.primary.checkpoint();
  }

  /** Drops the primary's connections at once, whatever is on its way. */
  cutLink(): void {
    this.primary.link?.giveUp(new LinkError("link-lost", "cut by the test"));
  }

  /** Resolves when the primary replicates, misses nothing, and nothing of a checkpoint is under way. */
  async synchronised(): Promise<void> {
    while (this.primary.link?.state !== "replicating" || this.primary.checkpointRefusal() !== null) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    // Behind the checkpoint that the primary takes by itself; another one is what makes that certain.
    await this.checkpoint();
  }

  async restartSecondary(): Promise<void> {
    await this.#closeServers();
    await this.node.restart();
    await this.#serve();
  }

  async crashSecondary(options: StartOptions = {}): Promise<void> {
    const servers = this.#servers;
    this.#servers = null;
    await this.node.crash();
    this.cutLink();
    // They wait for requests that will never end; what counts is that they listen no more.
    void servers?.writers.close();
    void servers?.view.close(0);
    await servers?.qmp.close();
    await this.node.reopen(options);
    await this.#serve();
  }

  /** A primary that comes back as another process, on the same disks. */
  async restartPrimary(): Promise<void> {
    await this.primary.close();
    await this.#openPrimary();
  }

  async dispose(): Promise<void> {
    for (const writer of this.#writers) writer.destroy(new Error("the test is over"));
    await this.#primary?.close();
    if (this.#servers !== null) await this.#closeServers();
    await this.node.dispose();
    await rm(this.#directory, { recursive: true });
  }

  async #connect(exportName: string): Promise<NbdDevice> {
    const writer = await connectNbd({ address: this.replicationAddress, exportName });
    this.#writers.push(writer);
    return writer;
  }

  get #viewAddress(): Address {
    return { kind: "unix", path: join(this.#directory, "view.sock") };
  }

  async #openPrimary(): Promise<void> {
    this.#primary = await Primary.open({
      directory: this.primaryState,
      disks: this.primaryDisks.map((device, index) => ({
        name: `disk${index}`,
        path: `memory:${index}`,
        device: checked(device),
      })),
      ackMode: this.#options.ackMode ?? "memsync",
      onCongestion: this.#options.onCongestion ?? "block",
      onReplicaError: this.#options.onReplicaError ?? "continue",
      replicaTimeoutMs: REPLICA_TIMEOUT_MS,
      resyncBytesPerSecond: 0,
      checkpointIntervalMs: 0,
      log: QUIET,
      events: {
        stateChanged: () => {
          this.#wake();
        },
        jobEnded: () => {
          this.#wake();
        },
        verifyEnded: () => {
          this.#wake();
        },
      },
    });
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) setImmediate(resolve);
  }

  async #serve(): Promise<void> {
    const { secondary } = this.node;
    const writers = new ReplicationServer(QUIET, {});
    writers.serve(secondary);
    const exports = new ExportTable();
    for (const { name, viewExport } of secondary.disks)
      exports.add({ name, readOnly: false, device: viewExport });
    const view = new NbdServer({ exports, log: QUIET });
    const qmp = new QmpServer({
      commands: [...nodeCommands({ status: unused, quit: unused }), ...secondaryPairCommands(secondary)],
      log: QUIET,
      version: "0",
    });
    this.node.connections = writers;
    this.node.onDurable = (epoch) => {
      qmp.emit(CHECKPOINT_EVENT, { epoch });
    };
    this.node.onCheckpointFailed = (failed) => {
      qmp.emit(CHECKPOINT_FAILED_EVENT, failed);
    };
    this.node.onRollbackLost = (lost) => {
      qmp.emit(ROLLBACK_LOST_EVENT, lost);
    };
    this.#servers = { writers, view, qmp };
    await writers.startAll([this.replicationAddress]);
    await view.listen(this.#viewAddress);
    await qmp.listen(this.qmpAddress);
  }

  async #closeServers(): Promise<void> {
    const servers = this.#servers;
    this.#servers = null;
    await servers?.view.close(CLOSE_DEADLINE_MS);
    await servers?.writers.close();
    await servers?.qmp.close();
  }
}

function unused(): never {
  throw new Error("no test asks for this");
}

/**
 * A secondary in this process, on media that outlive it: it can be restarted, and crash at any instant.
 *
 * Between the node and each medium lie, from the node down, the injected faults and the power supply of this life: what
 * is held when the node crashes never reaches the medium.
 */
import { pino, type Logger } from "pino";

import { checked } from "../../src/block/checked.js";
import type { BlockDevice } from "../../src/block/device.js";
import { DEFAULT_REPLICATION, type UndoErrorPolicy } from "../../src/config/schema.js";
import type { StateDirectory } from "../../src/meta/state-directory.js";
import type { FailedCheckpoint, LostRollback } from "../../src/replication/protocol.js";
import type { SecondaryStart } from "../../src/replication/roles.js";
import { Secondary } from "../../src/replication/secondary/secondary.js";
import type { FailoverTarget, Stage } from "../../src/replication/stage.js";
import { FailingDevice } from "./failing-device.js";
import { FailingStateDirectory } from "./failing-state-directory.js";
import { Power, poweredDevice, poweredDirectory } from "./power.js";

export interface SecondaryNodeOptions {
  /** What the disks disk0, disk1, ... lie on. */
  readonly media: readonly BlockDevice[];
  /** What the state directory lies on. */
  readonly state: StateDirectory;
  readonly onUndoError?: UndoErrorPolicy;
  /** Default: nobody reads it. */
  readonly log?: Logger;
}

/** For one start. */
export interface StartOptions extends Partial<SecondaryStart> {
  readonly onUndoError?: UndoErrorPolicy;
}

/** What src/app's ReplicationServer is to a secondary. */
export interface WriterConnections {
  connections(): readonly { readonly peer: string }[];
  disconnectWriters(): Promise<void>;
}

const NO_CONNECTIONS: WriterConnections = {
  connections: () => [],
  disconnectWriters: () => Promise.resolve(),
};

/** Everything that ends with the node's process. */
interface Life {
  readonly power: Power;
  readonly disks: readonly FailingDevice[];
  readonly state: FailingStateDirectory;
  readonly secondary: Secondary;
}

export class SecondaryNode {
  readonly options: SecondaryNodeOptions;
  /** Every stage entered, in all lives. */
  readonly stages: Stage[] = [];
  /** Every epoch announced as durable, in all lives. */
  readonly durableEpochs: number[] = [];
  /** How the last commit ended; undefined: not yet. */
  commitFailure: Error | null | undefined = undefined;
  /** Told of each epoch that is durable. */
  onDurable: (epoch: number) => void = () => undefined;
  /** Told of each that is not. */
  onCheckpointFailed: (failed: FailedCheckpoint) => void = () => undefined;
  /** Who is connected, and how they are cut off; direct users of replication() have no connections. */
  connections: WriterConnections = NO_CONNECTIONS;
  /** Told of each checkpoint that can't be gone back to any more. */
  onRollbackLost: (lost: LostRollback) => void = () => undefined;
  #life: Life | null = null;

  private constructor(options: SecondaryNodeOptions) {
    this.options = options;
  }

  static async open(options: SecondaryNodeOptions): Promise<SecondaryNode> {
    const node = new SecondaryNode(options);
    await node.#begin();
    return node;
  }

  get secondary(): Secondary {
    return this.#alive().secondary;
  }

  /** Where faults of the disks are injected, in this life. */
  get disks(): readonly FailingDevice[] {
    return this.#alive().disks;
  }

  disk(index = 0): FailingDevice {
    return at(this.disks, index);
  }

  /** Where faults of the state directory are injected, in this life. */
  get state(): FailingStateDirectory {
    return this.#alive().state;
  }

  get power(): Power {
    return this.#alive().power;
  }

  /** What the primary writes to. */
  replication(index = 0): BlockDevice {
    return at(this.secondary.disks, index).replicationExport;
  }

  view(index = 0): BlockDevice {
    return at(this.secondary.disks, index).viewExport;
  }

  /** Resolves when everything acknowledged to the primary is on the disks, or has failed. */
  async applied(): Promise<void> {
    for (const { copyBeforeWrite } of this.secondary.disks) await copyBeforeWrite.drain();
  }

  start(): Promise<void> {
    return this.secondary.start("secondary");
  }

  /** As a manager takes it: resolves with its epoch when it is durable. */
  async checkpoint(): Promise<number> {
    const epoch = await this.secondary.checkpoint({ session: null, epoch: null });
    await this.secondary.checkpointDurable();
    return epoch;
  }

  /** Resolves when the commit has ended, one way or the other. */
  async failover(to: FailoverTarget): Promise<void> {
    await this.secondary.stop(to);
    await this.secondary.commitEnded();
  }

  /** Ends cleanly, without beginning anew. */
  async close(): Promise<void> {
    const { secondary, power } = this.#alive();
    await secondary.close();
    await power.cut();
    this.#life = null;
  }

  async restart(): Promise<void> {
    await this.close();
    await this.#begin();
  }

  /** Ends without a word; media keep what has reached them. */
  async crash(): Promise<void> {
    await this.#alive().power.cut();
    this.#life = null;
  }

  /** @param options what is different from now on */
  async reopen(options: StartOptions = {}): Promise<void> {
    await this.#begin(options);
  }

  async crashAndReopen(): Promise<void> {
    await this.crash();
    await this.#begin();
  }

  /** For the end of a test, whatever state the node is in. */
  async dispose(): Promise<void> {
    if (this.#life !== null) await this.crash();
  }

  async #begin(changed: StartOptions = {}): Promise<void> {
    const { media, state: directory, onUndoError } = { ...this.options, ...changed };
    const { discardLocalChanges = false, demote = false } = changed;
    const power = new Power();
    const state = new FailingStateDirectory(poweredDirectory(directory, power));
    const disks = media.map((medium) => new FailingDevice(poweredDevice(medium, power)));
    const secondary = await Secondary.open({
      directory: state,
      disks: disks.map((device, index) => ({
        name: `disk${index}`,
        path: `memory:${index}`,
        device: checked(device),
      })),
      onUndoError: onUndoError ?? "break-checkpoint",
      discardLocalChanges,
      demote,
      asPrimary: {
        ...DEFAULT_REPLICATION,
        events: { stateChanged: () => undefined, jobEnded: () => undefined, verifyEnded: () => undefined },
      },
      log: this.options.log ?? pino({ level: "silent" }),
      events: {
        disconnectWriters: () => this.connections.disconnectWriters(),
        checkpointDurable: (epoch) => {
          this.durableEpochs.push(epoch);
          this.onDurable(epoch);
        },
        checkpointFailed: (failed) => {
          this.onCheckpointFailed(failed);
        },
        rollbackLost: (lost) => {
          this.onRollbackLost(lost);
        },
        stageChanged: (stage) => this.stages.push(stage),
        commitEnded: (failure) => {
          this.commitFailure = failure;
        },
      },
    });
    this.#life = { power, disks, state, secondary };
  }

  #alive(): Life {
    if (this.#life === null) throw new Error("the secondary does not run");
    return this.#life;
  }
}

function at<T>(items: readonly T[], index: number): T {
  const item = items[index];
  if (item === undefined) throw new RangeError(`there is no disk ${index}`);
  return item;
}

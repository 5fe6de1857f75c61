/**
 * A secondary's servers as its primary reaches them over the simulated link: what src/nbd/server and src/qmp/server do with
 * bytes, done with whole messages. Exports and commands are the real ones.
 */
import { ReplicationExports } from "../../src/app/replication-exports.js";
import { errnoOf, DeviceError, ReplError } from "../../src/errors.js";
import type { ConnectionObserver, NbdExport } from "../../src/nbd/server/exports.js";
import { checkArguments, type QmpCommand } from "../../src/qmp/command.js";
import { secondaryPairCommands } from "../../src/qmp/commands/pair.js";
import { errorBody } from "../../src/qmp/errors.js";
import {
  CHECKPOINT_EVENT,
  CHECKPOINT_FAILED_EVENT,
  type FailedCheckpoint,
} from "../../src/replication/protocol.js";
import type { Secondary } from "../../src/replication/secondary/secondary.js";
import type { End } from "./simulated-link.js";
import type { DiskAnswer, DiskRequest, QmpAnswer, QmpEvent, QmpRequest } from "./messages.js";

/** Told of what passes, so that the model knows what the replica has. */
export interface ServerEvents {
  /** @returns to be told when it was done and the answer is on its way */
  received(disk: number, request: DiskRequest): () => void;
  /** A command is about to run. @returns to be told of its answer */
  command(request: QmpRequest): (answer: unknown) => void;
}

export class SimulatedServer {
  readonly #secondary: Secondary;
  readonly #events: ServerEvents;
  readonly #exports: ReplicationExports;
  readonly #commands: ReadonlyMap<string, QmpCommand>;
  readonly #connections = new Set<DiskConnection>();
  readonly #controls = new Set<End>();
  #accepted = 0;
  #isClosing = false;

  constructor(secondary: Secondary, events: ServerEvents) {
    this.#secondary = secondary;
    this.#events = events;
    this.#exports = new ReplicationExports(() => secondary);
    for (const disk of secondary.disks)
      this.#exports.addDisk(disk, disk.name, { isWritable: true, description: null });
    this.#commands = new Map(secondaryPairCommands(secondary).map((command) => [command.name, command]));
  }

  /** Whether disks can be connected to: a node that is being stopped listens no more. */
  get isListening(): boolean {
    return !this.#isClosing;
  }

  get peers(): string[] {
    return [...this.#connections].map(({ peer }) => peer);
  }

  /** @returns why it is refused, or null */
  acceptDisk(end: End, name: string): string | null {
    const exported = this.#exports.get(name);
    const index = this.#secondary.disks.findIndex((disk) => disk.name === exported?.name);
    const refusal = exported === undefined ? "no such export" : (exported.refusal?.() ?? null);
    if (exported === undefined || refusal !== null) return refusal;
    const connection = new DiskConnection(end, `peer ${++this.#accepted}`, exported, (request) =>
      this.#events.received(index, request),
    );
    this.#connections.add(connection);
    void connection.ended.then(() => this.#connections.delete(connection));
    return null;
  }

  acceptControl(end: End): void {
    let last: Promise<void> = Promise.resolve();
    this.#controls.add(end);
    end.onMessage = (message): void => {
      last = last.then(() => this.#run(end, message as QmpRequest));
    };
    end.onClosed = (): void => {
      this.#controls.delete(end);
    };
  }

  /** As NbdServer.close(): nobody connects any more. */
  close(): Promise<void> {
    this.#isClosing = true;
    return this.disconnectWriters();
  }

  /** As NbdServer.disconnect(), of all exports. */
  async disconnectWriters(): Promise<void> {
    await Promise.all([...this.#connections].map((connection) => connection.shutDown()));
  }

  checkpointDurable(epoch: number): void {
    this.#emit({ event: CHECKPOINT_EVENT, data: { epoch } });
  }

  checkpointFailed(failed: FailedCheckpoint): void {
    this.#emit({ event: CHECKPOINT_FAILED_EVENT, data: { ...failed } });
  }

  #emit(event: QmpEvent): void {
    for (const end of this.#controls) end.send(event);
  }

  async #run(end: End, request: QmpRequest): Promise<void> {
    if (end.isClosed) return;
    const done = this.#events.command(request);
    const answer = await this.#execute(request).catch((error: unknown): QmpAnswer => {
      if (!(error instanceof ReplError)) throw error;
      return { id: request.id, error: errorBody(error) };
    });
    if ("result" in answer) done(answer.result);
    end.send(answer);
  }

  async #execute({ id, name, args }: QmpRequest): Promise<QmpAnswer> {
    if (name === "query-status") return { id, result: { stage: this.#secondary.stage } };
    const command = this.#commands.get(name);
    if (command === undefined) throw new Error(`no command ${name}`);
    const checkedArguments = checkArguments(command, JSON.parse(JSON.stringify(args)));
    const result = await command.run(checkedArguments, { clientId: 1 });
    return { id, result: JSON.parse(JSON.stringify(result)) as unknown };
  }
}

/** As src/nbd/server's Connection in transmission. */
class DiskConnection {
  readonly peer: string;
  /** Resolves when nothing of it can reach the device any more. */
  readonly ended: Promise<void>;
  readonly #end: End;
  readonly #export: NbdExport;
  readonly #received: (request: DiskRequest) => () => void;
  readonly #observer: ConnectionObserver;
  #resolveEnded: () => void = () => undefined;
  #writeRefusal: string | null | undefined;
  #open = 0;
  #isShuttingDown = false;
  #isOver = false;
  #isSummarised = false;
  #reads = 0;
  #writes = 0;
  #unanswered = 0;
  #failed = 0;
  #isClean = false;

  constructor(end: End, peer: string, exported: NbdExport, received: (request: DiskRequest) => () => void) {
    this.#end = end;
    this.peer = peer;
    this.#export = exported;
    this.#received = received;
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    this.#observer = exported.connected?.({ peer }) ?? {};
    end.onMessage = (message): void => {
      this.#request(message as DiskRequest);
    };
    end.onClosed = (): void => {
      this.#isOver = true;
      this.#progress();
    };
  }

  shutDown(): Promise<void> {
    this.#isShuttingDown = true;
    this.#progress();
    return this.ended;
  }

  #request(request: DiskRequest): void {
    if (request.kind === "disconnect") {
      this.#isClean = true;
      this.#isShuttingDown = true;
      this.#progress();
      return;
    }
    const isWrite = request.kind === "write" || request.kind === "zero" || request.kind === "trim";
    this.#open++;
    if (request.kind === "read") this.#reads++;
    if (isWrite) {
      this.#writes++;
      this.#unanswered++;
    }
    const refusal = this.#refusal(isWrite);
    const done = refusal === null ? this.#received(request) : (): void => undefined;
    const performed = refusal === null ? perform(this.#export, request) : Promise.reject(refusal);
    performed.then(
      (answer) => {
        done();
        this.#answer(isWrite, { id: request.id, ...answer });
      },
      (error: unknown) => {
        if (isWrite) this.#failed++;
        this.#answer(isWrite, { id: request.id, errno: errnoOf(error) });
      },
    );
  }

  #refusal(isWrite: boolean): DeviceError | null {
    if (this.#isShuttingDown) return new DeviceError("ESHUTDOWN", "shutting down");
    if (!isWrite) return null;
    if (this.#writeRefusal === undefined) this.#writeRefusal = this.#observer.firstWrite?.() ?? null;
    return this.#writeRefusal === null ? null : new DeviceError("EPERM", this.#writeRefusal);
  }

  #answer(isWrite: boolean, answer: DiskAnswer): void {
    this.#open--;
    if (!this.#end.isClosed) {
      if (isWrite) this.#unanswered--;
      this.#end.send(answer);
    }
    this.#progress();
  }

  #progress(): void {
    const isLast = this.#isOver || this.#isShuttingDown;
    if (!isLast || this.#open > 0 || this.#isSummarised) return;
    this.#isSummarised = true;
    this.#end.close();
    this.#resolveEnded();
    this.#observer.closed?.({
      peer: this.peer,
      clean: this.#isClean,
      unansweredWrites: this.#unanswered,
      reads: this.#reads,
      writes: this.#writes,
      failedWrites: this.#failed,
    });
  }
}

async function perform({ device }: NbdExport, request: DiskRequest): Promise<Omit<DiskAnswer, "id">> {
  const { offset, lengthBytes, flags } = request;
  switch (request.kind) {
    case "read": {
      const data = Buffer.alloc(lengthBytes);
      await device.read(offset, data);
      return { data };
    }
    case "write":
      await device.write(offset, request.data ?? Buffer.alloc(0), flags);
      return {};
    case "zero":
      await device.zero(offset, lengthBytes, flags);
      return {};
    case "trim":
      await device.trim(offset, lengthBytes, flags);
      return {};
    case "flush":
      await device.flush();
      return {};
    case "extents":
      return { extents: await device.extents(offset, lengthBytes, request.maxExtents ?? 1) };
    case "disconnect":
      return {};
  }
}

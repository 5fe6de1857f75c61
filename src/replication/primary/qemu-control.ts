/**
 * A QEMU as secondary (driver=replication,mode=secondary), commanded by its own QMP: docs/colo.md has its command line.
 *
 * It knows neither sessions nor epochs, and forgets its checkpoint when it ends. What is kept in it by us is one object
 * whose name has the tenure, one whose name has the generation of a whole copy, and one for a disk that is about to be
 * exported anew: they go with the process, and so do the before-images. Its driver is not asked to do what
 * it can't: a checkpoint beside a write aborts it, so the caller has drained (Checkpointer); a failover doesn't close
 * its NBD server, so it is looked at once a second.
 *
 * Invariants:
 * - Before the first write of a connection, every older client of the export has been cut off and its requests have ended.
 * - An export that is taken away for that is known by an object until it is there again, so that the next handshake exports the
 *   disk if this one is cut off in between. One that a manager took away stays away: that is how a failover begins.
 */
import { randomUUID } from "node:crypto";
import { z } from "zod";
import { NegotiationError, ProtocolError, StateError } from "../../errors.js";
import type { QmpClient } from "../../qmp/client.js";
import type { Hello, Welcome } from "../protocol.js";
import type { ReplicaControl, ReplicaControlEvents } from "./replica-control.js";

/** Name of the object that says which tenure the QEMU is in. */
const TENURE_PREFIX = "nbd-replication-tenure-";

/** Name of the object that says of which generation the copy is that it has. */
const GENERATION_PREFIX = "nbd-replication-generation-";

const nodesSchema = z.array(z.object({ drv: z.string() }));
const exportsSchema = z.array(z.object({ id: z.string(), "node-name": z.string() }));
const blocksSchema = z.array(
  z.object({ device: z.string(), inserted: z.object({ "node-name": z.string() }).optional() }),
);
const objectsSchema = z.array(z.object({ name: z.string() }));
const statusSchema = z.object({ error: z.boolean(), desc: z.string().optional() });

/** Name of the object that says that we are about to export a disk anew; its data: the device. */
const EXPORT_PREFIX = "nbd-replication-export-";

/** Of its driver, in terms of our stages. */
type QemuStage = "none" | "running" | "promoted";

export class QemuControl implements ReplicaControl {
  readonly hasDigests = false;
  readonly #client: QmpClient;
  readonly #timeoutMs: number;
  readonly #events: Pick<ReplicaControlEvents, "durable">;
  /** Of the primary, at the handshake. */
  #generation = "";
  /** The one that the QEMU's object is known to have; empty: not known. */
  #toldGeneration = "";

  /** @param events told of each checkpoint at once: nothing of QEMU's is durable, nor will be */
  constructor(client: QmpClient, timeoutMs: number, events: Pick<ReplicaControlEvents, "durable">) {
    this.#client = client;
    this.#timeoutMs = timeoutMs;
    this.#events = events;
  }

  get ended(): Promise<Error | null> {
    return this.#client.ended;
  }

  async handshake({ disks, epoch, tenures: shown, generation, ancestors }: Hello): Promise<Welcome> {
    const stage = await this.#stage();
    refusePromoted(stage);
    refuseOtherData(await this.#objects(GENERATION_PREFIX), [generation, ...ancestors]);
    this.#generation = generation;
    await this.#cutOff(disks.map(({ name }) => name));
    const tenures = await this.#objects(TENURE_PREFIX);
    const known = shown.length > 0 && shown.every((name) => tenures.includes(TENURE_PREFIX + name));
    // The old name first: to lose the new one costs a full copy, to keep both might trust a map from a backup.
    for (const id of tenures) await this.#execute("object-del", { id });
    const tenure = randomUUID();
    await this.#addObject(TENURE_PREFIX + tenure);
    // Whether a QEMU failed in between can't be asked.
    return { known, tenure, changed: {}, memory: randomUUID(), writer: null, epoch, stage };
  }

  prepareCheckpoint(): Promise<void> {
    return Promise.resolve();
  }

  /** The first one starts replication, whose view is what the disk holds then. */
  async checkpoint(_session: string, epoch: number): Promise<void> {
    const stage = await this.#stage();
    refusePromoted(stage);
    if (stage === "none") {
      await this.#execute("xen-set-replication", { enable: true, primary: false });
    } else {
      const { error, desc = "no reason given" } = await this.#status();
      if (error) {
        throw new StateError("replica-error", `checkpoint refused: the QEMU secondary says: ${desc}`);
      }
      await this.#execute("xen-colo-do-checkpoint", {});
    }
    await this.#tellGeneration();
    this.#events.durable(epoch);
  }

  takeOver(): Promise<string> {
    const remedy = "stop the guest, take a checkpoint and fail over with QEMU's own QMP";
    return Promise.reject(new StateError("no-take-over", `a QEMU secondary can't take over: ${remedy}`));
  }

  async heartbeat(): Promise<void> {
    refusePromoted(await this.#stage());
  }

  close(): Promise<void> {
    return this.#client.close();
  }

  /**
   * Its status doesn't tell "running" from "done", but its graph does: the filter that makes before-images is
   * there from start to stop, and the driver itself for ever.
   */
  async #stage(): Promise<QemuStage> {
    const nodes = await this.#ask(nodesSchema, "query-named-block-nodes", { flat: true });
    const drivers = new Set(nodes.map(({ drv }) => drv));
    if (!drivers.has("replication")) {
      throw new NegotiationError("no-replication", "the QEMU has no disk with driver=replication");
    }
    if (drivers.has("copy-before-write")) return "running";
    const { desc } = await this.#status();
    return desc === "Block replication is not running" ? "none" : "promoted";
  }

  /** Exports the disks anew: whoever was connected is gone, and nothing of theirs is under way any more. */
  async #cutOff(names: readonly string[]): Promise<void> {
    const exports = await this.#ask(exportsSchema, "query-block-exports", {});
    const marks = await this.#objects(EXPORT_PREFIX);
    for (const name of names) {
      const mark = EXPORT_PREFIX + name;
      const isMarked = marks.includes(mark);
      const found = exports.find(({ id }) => id === name);
      let device: unknown;
      if (found !== undefined) {
        device = await this.#deviceOf(found["node-name"]);
        if (isMarked) await this.#execute("object-del", { id: mark });
        await this.#addObject(mark, device);
        await this.#removeExport(name);
      } else if (isMarked) {
        device = await this.#execute("qom-get", { path: `/objects/${mark}`, property: "data" });
      } else continue;
      await this.#execute("nbd-server-add", { device, name, writable: true });
      await this.#execute("object-del", { id: mark });
    }
  }

  /** What names it whatever replication puts above it; a node that no device has names itself. */
  async #deviceOf(node: string): Promise<string> {
    const blocks = await this.#ask(blocksSchema, "query-block", {});
    const block = blocks.find(({ device, inserted }) => device !== "" && inserted?.["node-name"] === node);
    return block?.device ?? node;
  }

  /** Resolves when its clients' requests have ended. */
  async #removeExport(id: string): Promise<void> {
    const deleted = this.#client.waitForEvent("BLOCK_EXPORT_DELETED", {
      timeoutMs: this.#timeoutMs,
      matches: ({ data }) => data["id"] === id,
    });
    await Promise.all([deleted, this.#execute("nbd-server-remove", { name: id, mode: "hard" })]);
  }

  /** It has everything of the primary that introduced itself. */
  async #tellGeneration(): Promise<void> {
    const id = GENERATION_PREFIX + this.#generation;
    if (this.#generation === this.#toldGeneration) return;
    const known = await this.#objects(GENERATION_PREFIX);
    if (!known.includes(id)) await this.#addObject(id);
    for (const other of known) if (other !== id) await this.#execute("object-del", { id: other });
    this.#toldGeneration = this.#generation;
  }

  #addObject(
    id: string,
    data: unknown = "no secret: this object's name tells a primary what this QEMU has",
  ): Promise<unknown> {
    return this.#execute("object-add", { "qom-type": "secret", id, data });
  }

  async #objects(prefix: string): Promise<string[]> {
    // A QEMU has no place for objects before its first one: one without a machine and memory, for example.
    const root = await this.#ask(objectsSchema, "qom-list", { path: "/" });
    if (!root.some(({ name }) => name === "objects")) return [];
    const objects = await this.#ask(objectsSchema, "qom-list", { path: "/objects" });
    return objects.map(({ name }) => name).filter((name) => name.startsWith(prefix));
  }

  #status(): Promise<z.output<typeof statusSchema>> {
    return this.#ask(statusSchema, "query-xen-replication-status", {});
  }

  async #ask<T>(schema: z.ZodType<T>, command: string, args: object): Promise<T> {
    const parsed = schema.safeParse(await this.#execute(command, args));
    if (parsed.success) return parsed.data;
    throw new ProtocolError(
      "bad-answer",
      `QEMU's answer to ${command} makes no sense: ${parsed.error.message}`,
    );
  }

  #execute(command: string, args: object): Promise<unknown> {
    return this.#client.execute(command, args, { timeoutMs: this.#timeoutMs });
  }
}

function refusePromoted(stage: QemuStage): void {
  if (stage === "promoted") {
    throw new StateError(
      "promoted",
      "the QEMU secondary was promoted by a failover and must not be written to: start it anew as a secondary, or detach it",
    );
  }
}

/** @param known the objects that tell of the QEMU's copy; none: it has no whole one */
function refuseOtherData(known: readonly string[], line: readonly string[]): void {
  const [id] = known;
  if (id === undefined || known.some((name) => line.includes(name.slice(GENERATION_PREFIX.length)))) return;
  throw new StateError(
    "unrelated-data",
    `the QEMU secondary holds other data, of a line of history that is not this primary's: to give up what it has, start the QEMU anew, or remove its object ${id} (object-del)`,
  );
}

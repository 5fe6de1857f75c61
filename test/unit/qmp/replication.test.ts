import { expect } from "chai";
import { Deferred } from "../../../src/deferred.js";
import { StateError } from "../../../src/errors.js";
import { type ReplicationGroup, replicationCommands } from "../../../src/qmp/commands/replication.js";
import type { Mode } from "../../../src/replication/stage.js";
import { type Harness, RawClient, startServer } from "./harness.js";

const DONE = { return: {} };

describe("qmp/commands/replication", () => {
  let harness: Harness;
  let clients: [RawClient, RawClient];
  /** What the node is to a manager now. */
  let node: { mode: Mode; isActive: boolean };
  /** What becomes of a stop. */
  let stop: () => Promise<void>;
  let events: object[];

  beforeEach(async () => {
    node = { mode: "secondary", isActive: true };
    stop = () => Promise.resolve();
    events = [];
    const current = (): ReplicationGroup => ({
      ...node,
      start: () => Promise.resolve(),
      stop: async () => {
        await stop();
        node.isActive = false;
      },
      checkpoint: () => Promise.resolve(),
      getError: () => undefined,
    });
    harness = await startServer(
      replicationCommands(current, (event, data) => {
        events.push({ event, ...data });
      }),
    );
    clients = [await RawClient.ready(harness.address), await RawClient.ready(harness.address)];
  });

  afterEach(async () => {
    for (const { socket } of clients) socket.destroy();
    await harness.stop();
  });

  const lostHeartbeat = { execute: "x-colo-lost-heartbeat" };
  const refusal = (desc: string, code: string): object => ({
    error: { class: "GenericError", desc, code, kind: "state" },
  });
  const told = async (): Promise<unknown> => clients[0].ask({ execute: "query-colo-status" });
  const colo = (mode: string, lastMode: string, reason: string): object => ({
    return: { mode, "last-mode": lastMode, reason },
  });

  it("an end that two managers ask for at once is one: the second is refused as by QEMU, and all are told once", async () => {
    const asked = new Deferred<void>();
    const stopped = new Deferred<void>();
    stop = () => {
      asked.resolve();
      return stopped.promise;
    };
    const first = clients[0].ask(lostHeartbeat);
    await asked.promise;
    expect(await clients[1].ask(lostHeartbeat)).to.deep.equal(
      refusal("COLO failover is already actived", "already-exiting"),
    );
    stopped.resolve();
    expect(await first).to.deep.equal(DONE);
    expect(await clients[1].ask(lostHeartbeat)).to.deep.equal(
      refusal("The feature 'colo' is not enabled", "not-running"),
    );
    expect(events).to.deep.equal([{ event: "COLO_EXIT", mode: "secondary", reason: "request" }]);
  });

  it("an end that failed is none, and can be asked for again", async () => {
    stop = () => Promise.reject(new StateError("checkpoint-lost", "the last checkpoint is lost"));
    expect(await clients[0].ask(lostHeartbeat)).to.deep.equal(
      refusal("the last checkpoint is lost", "checkpoint-lost"),
    );
    expect([await told(), events]).to.deep.equal([colo("secondary", "none", "none"), []]);
    stop = () => Promise.resolve();
    expect(await clients[1].ask(lostHeartbeat)).to.deep.equal(DONE);
    expect(await told()).to.deep.equal(colo("none", "secondary", "request"));
  });

  it("the last mode is the one in which the end came, and there is none while the node replicates again", async () => {
    await clients[0].ask(lostHeartbeat);
    node = { mode: "primary", isActive: false };
    expect(await told()).to.deep.equal(colo("none", "secondary", "request"));
    node = { mode: "primary", isActive: true };
    expect(await told()).to.deep.equal(colo("primary", "none", "none"));
  });
});

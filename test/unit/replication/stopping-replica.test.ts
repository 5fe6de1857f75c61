/** What a primary makes of a secondary that is about to end, and takes no commands any more. */
import { expect } from "chai";
import { LinkError, UnreachableError } from "../../../src/errors.js";
import { QmpError, STOPPING } from "../../../src/qmp/errors.js";
import { isRefusal } from "../../../src/replication/primary/link-loss.js";
import type { Hello } from "../../../src/replication/protocol.js";
import { NodeControl, type QmpConnection } from "../../../src/replication/primary/replica-control.js";
import type { ReplicaNetwork } from "../../../src/replication/primary/replica-network.js";
import { requestTakeOver } from "../../../src/replication/primary/take-over.js";
import { VirtualTime } from "../../simulation/virtual-time.js";
import { failureOf } from "../../tools/outcome.js";

const GENERATION = "b8f0ac5e-2e1a-4c9b-9a55-0d6a3f7f1c11";
const DEAF = { durable: () => undefined, checkpointFailed: () => undefined, rollbackLost: () => undefined };
const stopping = (): QmpError => new QmpError("GenericError", STOPPING, "the node is stopping", "state");

/** Answers each command with the next of these; the last one again and again. */
function controlOf(answers: unknown[]): NodeControl {
  const connection: QmpConnection = {
    ended: new Promise(() => undefined),
    onEvent: () => () => undefined,
    close: () => Promise.resolve(),
    execute: () => {
      const answer = answers.length > 1 ? answers.shift() : answers[0];
      return answer instanceof Error ? Promise.reject(answer) : Promise.resolve(answer);
    },
  };
  return new NodeControl(connection, 1000, DEAF);
}

/** @param stoppedMs for how long this process was stopped meanwhile */
function takeOver(control: ReplicaNetwork["control"], stoppedMs: () => number = () => 0): Promise<string> {
  const time = new VirtualTime();
  const asked = requestTakeOver({
    control: { kind: "unix", path: "/control" },
    primary: "primary",
    epoch: 1,
    timeoutMs: 1000,
    clock: {
      nowMs: () => time.nowMs + stoppedMs(),
      after: (ms, call) => time.after(ms, call),
      every: () => () => undefined,
    },
    network: {
      control,
      commands: () => Promise.reject(new Error("there is nothing to ask")),
      disk: () => Promise.reject(new Error("there is no disk")),
    },
  });
  return time.until(asked);
}

describe("a secondary that is stopping", () => {
  it("has not refused its primary: it is tried again, as one that is gone", async () => {
    const failure = await failureOf(controlOf([stopping()]).handshake({} as Hello));
    expect(failure).to.include({ code: STOPPING, message: "the secondary is stopping" });
    expect(isRefusal(failure)).to.equal(false);
  });

  it("is asked to take over until it is back", async () => {
    const control = controlOf([stopping(), stopping(), { generation: GENERATION }]);
    expect(await takeOver(() => Promise.resolve(control))).to.equal(GENERATION);
  });

  it("is asked again if this process was stopped while it was asked, for longer than it may take", async () => {
    let stoppedMs = 0;
    const lost = new LinkError("connection-lost", "the network forgot the connection");
    const control = controlOf([lost, { generation: GENERATION }]);
    const asked = takeOver(
      () => {
        stoppedMs = 60_000;
        return Promise.resolve(control);
      },
      () => stoppedMs,
    );
    expect(await asked).to.equal(GENERATION);
  });

  it("has not taken over if it never comes back", async () => {
    const controls = [controlOf([stopping()])];
    const gone = new UnreachableError("unreachable", "nobody there");
    const failure = await failureOf(
      takeOver(() => {
        const control = controls.shift();
        return control === undefined ? Promise.reject(gone) : Promise.resolve(control);
      }),
    );
    expect(failure).to.equal(gone);
  });
});

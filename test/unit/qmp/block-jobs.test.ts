import { expect } from "chai";
import { blockJobCommands } from "../../../src/qmp/commands/block-jobs.js";
import type { JobStatus } from "../../../src/status.js";
import { type Harness, RawClient, startServer } from "./harness.js";

const job = (type: JobStatus["type"], id: string): JobStatus => ({
  ...{ id, type, disk: "disk0", offset: 0, len: 4096, elapsedSeconds: 0, speed: 0, ready: false },
});

describe("qmp/commands/block-jobs", () => {
  let harness: Harness;
  let client: RawClient;
  let speeds: (readonly [id: string, bytesPerSecond: number])[];

  beforeEach(async () => {
    speeds = [];
    harness = await startServer(
      blockJobCommands({
        jobs: () => [job("mirror", "mirror-disk0"), job("commit", "commit")],
        setSpeed: (id, bytesPerSecond) => speeds.push([id, bytesPerSecond]),
        cancel: () => undefined,
      }),
    );
    client = await RawClient.ready(harness.address);
  });

  afterEach(async () => {
    client.socket.destroy();
    await harness.stop();
  });

  const setSpeed = (device: string): Promise<unknown> =>
    client.ask({ execute: "block-job-set-speed", arguments: { device, speed: 1024 } });

  it("sets the speed of a mirror", async () => {
    expect(await setSpeed("mirror-disk0")).to.deep.equal({ return: {} });
    expect(speeds).to.deep.equal([["mirror-disk0", 1024]]);
  });

  it("refuses to set the speed of a commit, and says that it has none", async () => {
    const desc = "Job 'commit' has no speed limit: a failover's merge runs as fast as its disks";
    const error = { class: "GenericError", desc, code: "no-speed", kind: "failed" };
    expect(await setSpeed("commit")).to.deep.equal({ error });
    expect(speeds).to.deep.equal([]);
  });

  it("has no job of another name", async () => {
    const desc = "Block job 'mirror-disk1' not found";
    const error = { class: "DeviceNotActive", desc, code: "no-job", kind: "failed" };
    expect(await setSpeed("mirror-disk1")).to.deep.equal({ error });
  });
});

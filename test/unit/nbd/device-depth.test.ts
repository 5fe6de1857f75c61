import { setTimeout as sleep } from "node:timers/promises";

import { expect } from "chai";

import { DeviceDepth, deviceDepthOf } from "../../../src/nbd/server/device-depth.js";
import { DEVICE_REQUESTS, DEVICE_WAIT_MS } from "../../../src/nbd/server/limits.js";
import { MemoryDevice } from "../../tools/memory-device.js";

function filled(): DeviceDepth {
  const depth = new DeviceDepth();
  for (let count = 0; count < DEVICE_REQUESTS; count++) depth.begun();
  return depth;
}

describe("DeviceDepth", () => {
  it("is full with as many requests as it takes, until one has settled", () => {
    const depth = new DeviceDepth();
    for (let count = 0; count < DEVICE_REQUESTS; count++) {
      expect(depth.isFull).to.equal(false);
      depth.begun();
    }
    expect(depth.isFull).to.equal(true);
    depth.settled();
    expect(depth.isFull).to.equal(false);
  });

  it("calls one of those who wait for each request that settles, once, in the order in which they came", () => {
    const depth = filled();
    const called: string[] = [];
    for (const name of ["first", "second", "third"]) depth.wait(() => called.push(name));
    depth.settled();
    expect(called).to.deep.equal(["first"]);
    depth.settled();
    depth.settled();
    depth.settled();
    expect(called).to.deep.equal(["first", "second", "third"]);
  });

  it("calls all who are left when nothing is under way: nobody waits for what never comes", () => {
    const depth = filled();
    let calls = 0;
    for (let count = 0; count < 2 * DEVICE_REQUESTS; count++) depth.wait(() => calls++);
    for (let count = 1; count < DEVICE_REQUESTS; count++) depth.settled();
    expect(calls).to.equal(DEVICE_REQUESTS - 1);
    depth.settled();
    expect(calls).to.equal(2 * DEVICE_REQUESTS);
  });

  it("does not call who has left", () => {
    const depth = filled();
    const called: string[] = [];
    const leaving = (): void => void called.push("left");
    depth.wait(leaving);
    depth.wait(() => called.push("stayed"));
    depth.leave(leaving);
    depth.settled();
    expect(called).to.deep.equal(["stayed"]);
  });

  it("gives who is called the place of what has settled, and none to who is called because nothing has", async () => {
    const depth = filled();
    const places: boolean[] = [];
    const wait = (): void => {
      depth.wait((hasPlace) => places.push(hasPlace));
    };
    wait();
    depth.settled();
    wait();
    await sleep(3 * DEVICE_WAIT_MS);
    expect(places).to.deep.equal([true, false]);
  });

  it("calls those who wait after a while, though nothing settles", async () => {
    const depth = filled();
    const called: string[] = [];
    for (const name of ["first", "second"]) depth.wait(() => called.push(name));
    await sleep(2 * DEVICE_WAIT_MS);
    expect(called).to.deep.equal(["first", "second"]);
    depth.wait(() => called.push("again"));
    await sleep(2 * DEVICE_WAIT_MS);
    expect(called).to.deep.equal(["first", "second", "again"]);
  });

  it("is one for all clients of an export, and another one for each export", () => {
    const served = (name: string) => ({ name, readOnly: false, device: new MemoryDevice(4096) });
    const [one, other] = [served("disk0"), served("disk0")];
    expect(deviceDepthOf(one)).to.equal(deviceDepthOf(one));
    expect(deviceDepthOf(one)).to.not.equal(deviceDepthOf(other));
  });
});

import { setTimeout as sleep } from "node:timers/promises";

import { expect } from "chai";

import { Deferred } from "../../../src/deferred.js";
import { DeviceDepth, deviceDepthOf, DevicePlace } from "../../../src/nbd/server/device-depth.js";
import { DEVICE_REQUESTS, DEVICE_WAIT_MS } from "../../../src/nbd/server/limits.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { waitFor } from "../../tools/wait-for.js";

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

  it("calls those who wait after a while, though something settled when they came", async () => {
    const depth = filled();
    const called: string[] = [];
    depth.wait(() => {
      depth.begun();
      called.push("first");
    });
    depth.wait(() => called.push("second"));
    depth.settled();
    expect(called).to.deep.equal(["first"]);
    await waitFor(
      "the call",
      () => called,
      ({ length }) => length > 1,
    );
    expect(called).to.deep.equal(["first", "second"]);
  });

  it("is one for all clients of an export, and another one for each export", () => {
    const served = (name: string) => ({ name, readOnly: false, device: new MemoryDevice(4096) });
    const [one, other] = [served("disk0"), served("disk0")];
    expect(deviceDepthOf(one)).to.equal(deviceDepthOf(one));
    expect(deviceDepthOf(one)).to.not.equal(deviceDepthOf(other));
  });
});

describe("DevicePlace", () => {
  const placeAt = (depth: DeviceDepth, onCalled: () => void = () => undefined): DevicePlace =>
    new DevicePlace(depth, onCalled);
  /** With a promise of the call to ask again. */
  const patientPlaceAt = (depth: DeviceDepth): [place: DevicePlace, called: Promise<void>] => {
    const called = new Deferred<void>();
    const place = placeAt(depth, () => {
      called.resolve();
    });
    return [place, called.promise];
  };

  it("lets a client begin as long as the device is not full", () => {
    const place = placeAt(new DeviceDepth());
    expect(place.mayBegin(false, false)).to.equal(true);
    expect(place.isAwaited).to.equal(false);
  });

  it("has a client wait that has requests open, or whose request has waited already", () => {
    const [open, late] = [placeAt(filled()), placeAt(filled())];
    expect(open.mayBegin(false, true)).to.equal(false);
    expect(late.mayBegin(true, false)).to.equal(false);
    expect([open.isAwaited, late.isAwaited]).to.deep.equal([true, true]);
  });

  it("lets a client begin that asks for little at a time, however full the device is", () => {
    expect(placeAt(filled()).mayBegin(true, true)).to.equal(true);
  });

  it("has a client wait that has waited a moment ago: it does not ask for little", () => {
    const depth = filled();
    const place = placeAt(depth);
    expect(place.mayBegin(false, true)).to.equal(false);
    depth.settled();
    depth.begun();
    expect(place.mayBegin(false, false), "the place that came free").to.equal(true);
    expect(place.mayBegin(true, true)).to.equal(false);
  });

  it("lets a client begin one request for the place that it was called for, though others were quicker", () => {
    const depth = filled();
    let calls = 0;
    const place = placeAt(depth, () => calls++);
    expect(place.mayBegin(false, false)).to.equal(false);
    depth.settled();
    depth.begun();
    expect(calls).to.equal(1);
    expect(place.isAwaited).to.equal(false);
    expect(place.mayBegin(false, false)).to.equal(true);
    expect(place.mayBegin(false, false)).to.equal(false);
  });

  it("lets a client begin its first request, and no other, when it has waited and nothing has settled", async () => {
    const [first, firstCalled] = patientPlaceAt(filled());
    expect(first.mayBegin(true, false)).to.equal(false);
    await firstCalled;
    expect(first.mayBegin(true, false)).to.equal(true);
    const [further, furtherCalled] = patientPlaceAt(filled());
    expect(further.mayBegin(false, false)).to.equal(false);
    await furtherCalled;
    expect(further.mayBegin(false, false)).to.equal(false);
  });

  it("calls no client that is gone, and passes the place on", () => {
    const depth = filled();
    let calls = 0;
    const [gone, next] = [placeAt(depth, () => calls++), placeAt(depth, () => calls++)];
    for (const place of [gone, next]) place.mayBegin(false, false);
    gone.close();
    depth.settled();
    depth.begun();
    expect(calls).to.equal(1);
    expect(next.mayBegin(false, false)).to.equal(true);
  });
});

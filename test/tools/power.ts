/**
 * The power supply of a node under test: what it stores on passes through here until the power is cut.
 *
 *     const power = new Power();
 *     const disk = poweredDevice(memory, power);
 *     await power.cut();              // calls under way are done, but nobody hears of it; later ones never begin
 *
 * Invariant: after cut() has resolved nothing changes what lies behind any more, so that the next life of the node can
 * begin on it while promises of the old one hang for ever.
 */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../../src/block/device.js";
import type { StateDirectory, StateFile } from "../../src/meta/state-directory.js";

export class Power {
  /** Resolves when the power is cut. */
  readonly failed: Promise<void>;
  readonly #underWay = new Set<Promise<unknown>>();
  readonly #openFiles = new Set<StateFile>();
  #isOn = true;
  #changesLeft = Infinity;
  #fail: () => void = () => undefined;

  constructor() {
    this.failed = new Promise((resolve) => {
      this.#fail = resolve;
    });
  }

  get isOn(): boolean {
    return this.#isOn;
  }

  /** Lets so many more calls through that change something or make it durable, then fails. */
  failAfter(changes: number): void {
    this.#changesLeft = changes;
  }

  /** Resolves when nothing is under way any more; what the node left open is closed, as the kernel does. */
  async cut(): Promise<void> {
    this.#off();
    await Promise.allSettled(this.#underWay);
    for (const file of this.#openFiles) await file.close();
    this.#openFiles.clear();
  }

  change<T>(call: () => Promise<T>): Promise<T> {
    if (this.#changesLeft <= 0) this.#off();
    this.#changesLeft--;
    return this.pass(call);
  }

  pass<T>(call: () => Promise<T>): Promise<T> {
    if (!this.#isOn) return never();
    const done = call();
    const tracked = done.then(ignore, ignore).finally(() => this.#underWay.delete(tracked));
    this.#underWay.add(tracked);
    // Who waits for a call that the cut has overtaken does not hear of it.
    const heard = <R>(settle: () => R): R | Promise<R> => (this.#isOn ? settle() : never<R>());
    return done.then(
      (value) => heard(() => value),
      (error: unknown) =>
        heard(() => {
          throw error;
        }),
    );
  }

  opened(file: StateFile): void {
    this.#openFiles.add(file);
  }

  closed(file: StateFile): void {
    this.#openFiles.delete(file);
  }

  #off(): void {
    this.#isOn = false;
    this.#fail();
  }
}

export function poweredDevice(device: BlockDevice, power: Power): BlockDevice {
  return new PoweredDevice(device, power);
}

export function poweredDirectory(directory: StateDirectory, power: Power): StateDirectory {
  const opened = async (file: Promise<StateFile>): Promise<StateFile> => poweredFile(await file, power);
  return {
    path: directory.path,
    create: (name) => power.change(() => opened(directory.create(name))),
    open: (name) => power.pass(() => opened(directory.open(name))),
    replaceText: (name, text) => power.change(() => directory.replaceText(name, text)),
    readText: (name) => power.pass(() => directory.readText(name)),
    remove: (name) => power.change(() => directory.remove(name)),
    rename: (name, newName) => power.change(() => directory.rename(name, newName)),
    truncate: (name, lengthBytes) => power.change(() => directory.truncate(name, lengthBytes)),
    list: () => power.pass(() => directory.list()),
    freeBytes: () => power.pass(() => directory.freeBytes()),
  };
}

function poweredFile(file: StateFile, power: Power): StateFile {
  power.opened(file);
  return {
    path: file.path,
    get sizeBytes() {
      return file.sizeBytes;
    },
    read: (position, into) => power.pass(() => file.read(position, into)),
    write: (position, buffers) => power.change(() => file.write(position, buffers)),
    punch: (position, lengthBytes) => power.change(() => file.punch(position, lengthBytes)),
    writeDurably: async (position, buffers) => {
      await power.change(() => file.write(position, buffers));
      await power.change(() => file.writeDurably(position, buffers));
    },
    sync: () => power.change(() => file.sync()),
    close: () =>
      power.pass(() => {
        power.closed(file);
        return file.close();
      }),
  };
}

class PoweredDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #next: BlockDevice;
  readonly #power: Power;

  constructor(next: BlockDevice, power: Power) {
    this.info = next.info;
    this.#next = next;
    this.#power = power;
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#power.pass(() => this.#next.read(offset, into));
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#power.change(() => this.#next.write(offset, from, flags));
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#power.change(() => this.#next.zero(offset, lengthBytes, flags));
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#power.change(() => this.#next.trim(offset, lengthBytes, flags));
  }

  flush(): Promise<void> {
    return this.#power.change(() => this.#next.flush());
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#power.pass(() => this.#next.extents(offset, lengthBytes, maxExtents));
  }

  /** The medium outlives the node. */
  close(): Promise<void> {
    return Promise.resolve();
  }
}

function never<T>(): Promise<T> {
  return new Promise(() => undefined);
}

function ignore(): void {
  return undefined;
}

/**
 * A secondary and a model of it beside it: plain buffers of what the primary has sent and of what the view has to show.
 *
 * Invariant: between two steps of a run nothing is under way, `disk` is what the media hold (once promoted: `view` is),
 * and `view` is what clients read.
 */
import type { BlockDevice } from "../../src/block/device.js";
import { expectSame, readRange } from "../contract/device-model.js";
import { MemoryStateDirectory } from "../tools/memory-state-directory.js";
import { SecondaryNode } from "../tools/secondary-node.js";
import { Random } from "../tools/seed.js";
import { WriteBackDisk } from "../tools/write-back-disk.js";
import {
  apply,
  at,
  type Effect,
  effectOf,
  roundTrim,
  expectChanged,
  expectOneOf,
  issue,
  type Request,
} from "./requests.js";

export class SecondaryModel {
  readonly media: readonly WriteBackDisk[];
  readonly state: MemoryStateDirectory;
  readonly node: SecondaryNode;
  readonly random: Random;
  /** What the primary believes to have sent; differs from the disk after a crash only. */
  truth: Buffer[];
  disk: Buffer[];
  view: Buffer[];
  /** What a crash leaves of the view at least, and what may have been done to it since. */
  viewFlushed: Buffer[];
  viewSince: Effect[][];
  /** Promoted: the view is the disk. */
  isDone = false;
  /** The secondary may have lost acknowledged writes. */
  hasGap = false;
  /** A primary introduced itself, and takes the checkpoints. */
  isReserved = false;

  private constructor(
    media: readonly WriteBackDisk[],
    state: MemoryStateDirectory,
    node: SecondaryNode,
    random: Random,
  ) {
    this.media = media;
    this.state = state;
    this.node = node;
    this.random = random;
    this.disk = media.map((medium) => medium.contents());
    this.truth = copies(this.disk);
    this.view = copies(this.disk);
    this.viewFlushed = copies(this.disk);
    this.viewSince = media.map(() => []);
  }

  /** A node that has been started, on disks half full of what the seed gives. */
  static async start(sizes: readonly number[], seed: number): Promise<SecondaryModel> {
    const random = new Random(seed);
    const media = sizes.map((sizeBytes) => {
      // The rest is holes, where before-images are markers.
      const data = random.bytes(Math.ceil(sizeBytes / 2));
      return new WriteBackDisk(Buffer.concat([data], sizeBytes));
    });
    const state = new MemoryStateDirectory();
    const node = await SecondaryNode.open({ media, state });
    const model = new SecondaryModel(media, state, node, random);
    model.jitter();
    await node.start();
    return model;
  }

  /** Requests overtake each other from here on, in a way that the seed decides. */
  jitter(): void {
    for (const disk of this.node.disks) disk.reorder({}, this.random, 2);
    this.node.state.reorder(this.random);
  }

  /**
   * What requests do, disk by disk, in their order.
   * @param isPromoted whether the mirror of a promoted node takes them, which zeroes exactly what is trimmed
   */
  effects(requests: readonly Request[], isPromoted = this.isDone): Effect[][] {
    const effects: Effect[][] = this.media.map(() => []);
    for (const request of requests) {
      const effect = effectOf(request, at(this.disk, request.disk).length, isPromoted ? "bytes" : "pages");
      if (effect !== null) at(effects, request.disk).push(effect);
    }
    return effects;
  }

  /** Requests that do the same whether a node is promoted already or not: their trims are of whole pages. */
  besidePromotion(requests: readonly Request[]): Request[] {
    return requests.map((request) =>
      request.kind === "trim" ? roundTrim(request, at(this.disk, request.disk).length) : request,
    );
  }

  /** Sends a request; what a read shows must be what was there or what came beside it. */
  async request(
    device: BlockDevice,
    request: Request,
    before: readonly Buffer[],
    beside: readonly Effect[][],
  ): Promise<void> {
    const base = at(before, request.disk);
    const content = await issue(device, request);
    if (content === null) return;
    expectOneOf(content, request.offset, [base], at(beside, request.disk), `read of disk ${request.disk}`);
  }

  send(requests: readonly Request[]): Promise<unknown> {
    return Promise.all(requests.map((request) => issue(this.node.replication(request.disk), request)));
  }

  /** Checks the view after changes in an open order, and goes on from what it shows. */
  async takeView(index: number, before: Buffer, effects: readonly Effect[]): Promise<void> {
    if (effects.length === 0) return;
    const actual = await this.readView(index);
    expectChanged(actual, before, effects, `view ${index}`);
    this.view[index] = actual;
    at(this.viewSince, index).push(...effects);
  }

  /**
   * Around an instant at which the view becomes the disk: each request falls before or after it, as a whole. The view's
   * are dropped or kept, the primary's are in it or not.
   */
  async takeInstant(
    index: number,
    sent: readonly Effect[],
    viewed: readonly Effect[],
    what: string,
  ): Promise<void> {
    const actual = await this.readView(index);
    const shows = ({ offset, content }: Effect): boolean =>
      actual.subarray(offset, offset + content.length).equals(content);
    const kept = viewed.filter(shows);
    const isUnderKept = (position: number): boolean =>
      kept.some(({ offset, content }) => position >= offset && position < offset + content.length);
    const included = sent.filter(({ offset, content }) =>
      content.every((byte, place) => isUnderKept(offset + place) || actual[offset + place] === byte),
    );
    const expected = Buffer.from(at(this.disk, index));
    apply(expected, included);
    this.viewFlushed[index] = Buffer.from(expected);
    apply(expected, kept);
    expectSame(actual, expected, 0, `view ${index} after the ${what}`);
    this.view[index] = actual;
    this.viewSince[index] = [...kept];
  }

  /** After a crash: what the disk holds is not what the primary believes to have sent. */
  takeDisk(index: number, content: Buffer, durable: Buffer, sent: readonly Effect[]): void {
    expectOneOf(content, 0, [at(this.disk, index), durable], sent, `disk ${index} after the crash`);
    apply(at(this.truth, index), sent);
    this.disk[index] = content;
  }

  becomeDone(): void {
    const { stage } = this.node.secondary;
    if (stage !== "done") throw new Error(`stage is ${stage} after the failover`);
    this.isDone = true;
    this.forgetView(this.view);
  }

  async flushView(): Promise<void> {
    for (const index of this.media.keys()) await this.node.view(index).flush();
    this.forgetView(this.view);
  }

  /** The view is this, and a crash can't change it. */
  forgetView(view: readonly Buffer[]): void {
    this.view = copies(view);
    this.viewFlushed = copies(view);
    this.viewSince = view.map(() => []);
  }

  async verify(): Promise<void> {
    for (const { copyBeforeWrite } of this.node.secondary.disks) await copyBeforeWrite.drain();
    await this.verifyViews();
    for (const [index, medium] of this.media.entries()) {
      const expected = at(this.isDone ? this.view : this.disk, index);
      expectSame(medium.contents(), expected, 0, `disk ${index}`);
    }
  }

  async verifyViews(): Promise<void> {
    for (const [index, expected] of this.view.entries()) {
      expectSame(await this.readView(index), expected, 0, `view ${index}`);
    }
  }

  readView(index: number): Promise<Buffer> {
    const device = this.node.view(index);
    return readRange(device, 0, device.info.sizeBytes);
  }
}

export function copies(buffers: readonly Buffer[]): Buffer[] {
  return buffers.map((buffer) => Buffer.from(buffer));
}

/**
 * Both hosts, the link between them, and beside each host the model of what its disks may hold.
 *
 * What is checked all along: no guest's write is acknowledged that is neither at the replica, as the ack mode says, nor known to
 * be missing there; reads see what was acknowledged; a secondary is in no epoch that no primary began.
 */
import type { BlockDevice } from "../../src/block/device.js";
import { Flag } from "../../src/block/device.js";
import { DIRTY_BLOCK_BYTES } from "../../src/block/dirty-blocks.js";
import { EXTENT_BYTES } from "../../src/block/hot-extents.js";
import { describeError, DeviceError } from "../../src/errors.js";
import type { Secondary } from "../../src/replication/secondary/secondary.js";
import type { Random } from "../tools/seed.js";
import { SECTOR_BYTES } from "../tools/write-back-disk.js";
import { type Change, contentOf, History, keyOf, type Run, type Value, valuesOf } from "./history.js";
import type { DiskRequest, QmpRequest } from "./messages.js";
import { type Death, type FaultKinds, type Life, type Policies, SimulatedHost } from "./simulated-host.js";
import { type End, SimulatedLink } from "./simulated-link.js";
import { refusedExport } from "./simulated-network.js";
import type { SimulatedServer } from "./simulated-server.js";
import { VirtualTime } from "./virtual-time.js";

const MEBIBYTE = 1024 * 1024;
/** Of the first disk's three extents the second is never written to, and the third is a short one. */
export const SIZES = [8 * MEBIBYTE + 256 * 1024 + 512, 100 * 1024] as const;
/** Where guests write; everything else stays zero. One run crosses a dirty block, one ends at the end of the disk. */
export const ZONES: readonly Run[] = [
  { disk: 0, first: 0, count: 96 },
  { disk: 0, first: 2048 - 24, count: 48 },
  { disk: 0, first: (SIZES[0] - 32 * SECTOR_BYTES) / SECTOR_BYTES, count: 32 },
  { disk: 1, first: 100, count: 100 },
];

/** A copy's progress is on record with some flush of the replica, and those come once a second. */
const PROGRESS_MS = 10_000;

/** The content of all zones, by keyOf(). */
export type Content = ReadonlyMap<number, Value>;

/** A host and what is known of it. */
export class ModelledHost {
  readonly host: SimulatedHost;
  /** What its disks may hold. */
  disk = new History();
  /** What each epoch's view shows at its beginning: of those that are known to have begun, and those that may have. */
  readonly epochs = new Map<number, Content>();
  readonly candidates = new Map<number, Content[]>();
  /** What may be on top of it. */
  readonly views = new Map<number, History>();
  /** By the epoch: what of the primary's own history is this node's too, from that epoch on. */
  readonly adopting = new Map<number, readonly Value[]>();
  readonly viewWrites = new Set<{ readonly run: Run; readonly values: readonly Value[] }>();
  /** Writes of its own guests that it acknowledged without the other node. */
  readonly alone = new Set<Value>();
  /** It acknowledged what the node that took over has not: its history must not be taken for that one's. */
  mustRefuse = false;
  /** It has no part any more: its guests are strays, what it acknowledges to them is a history of its own. */
  isReplaced = false;
  /** Its disks are not what its guests see: a failover is being merged, or may be. */
  isCommitting = false;
  /** When a replica answered its last handshake, and whether it died before the progress of that copy was on record. */
  welcomedMs = 0;
  hasLostProgress = false;
  /** Its operator has given up what only it has, which may cost a full copy. */
  isGivenUp = false;
  /** How its node is started. */
  role: "primary" | "secondary" = "primary";
  /** Values that this host has answered as a replica, and those of them that it answered as durable. */
  readonly received = new Set<Value>();
  /** Blocks that its guests changed since both disks were last seen to be the same. */
  readonly touched = new Set<string>();
  /** Extents that they ever changed, and that may be hot. */
  readonly extents = new Set<string>();
  /** It crashed since then: whole extents may be missing. */
  hasCrashed = false;
  guestErrorsAllowed = false;
  /** Its node is being stopped. */
  isStopping = false;
  /** How often its storage had failed when both disks were last seen to be the same. */
  #mendedFailures = 0;
  #mendedDiskFailures = 0;
  #mendedTrackFailures = 0;
  /** The life in which it lost track last: a dirty map that broke stays so until the node is started anew. */
  #lostTrackIn: Life | null = null;

  constructor(host: SimulatedHost) {
    this.host = host;
  }

  get name(): string {
    return this.host.name;
  }

  /** Whether its storage failed since both disks were last seen to be the same: as a replica it may lack what it acknowledged. */
  get hasFailed(): boolean {
    return this.host.failures > this.#mendedFailures;
  }

  /** Whether a disk of its did, so that its own guests may be told. */
  get hasDiskFailed(): boolean {
    return this.host.diskFailures > this.#mendedDiskFailures;
  }

  /** Whether a flush or its state directory did: what the dirty maps, the names and the history tell may be lost. */
  get hasLostTrack(): boolean {
    return this.#trackFailures > this.#mendedTrackFailures;
  }

  get #trackFailures(): number {
    return this.host.flushFailures + this.host.stateFaults.taken;
  }

  losesTrack(): void {
    this.#lostTrackIn = this.host.life;
  }

  forgetFailures(): void {
    if (this.#lostTrackIn !== this.host.life) this.#mendedTrackFailures = this.#trackFailures;
    this.#mendedFailures = this.host.failures;
    this.#mendedDiskFailures = this.host.diskFailures;
  }

  view(epoch: number): History {
    let view = this.views.get(epoch);
    if (view === undefined) {
      view = new History();
      this.views.set(epoch, view);
    }
    return view;
  }
}

export interface Counts {
  guestChanges: number;
  checkpoints: number;
  crashes: number;
  failovers: number;
  switchOvers: number;
  splitBrains: number;
  fullCopies: number;
  failures: number;
  lostCheckpoints: number;
  verified: number;
  worstStallMs: number;
}

export function noCounts(): Counts {
  return {
    guestChanges: 0,
    checkpoints: 0,
    crashes: 0,
    failovers: 0,
    switchOvers: 0,
    splitBrains: 0,
    fullCopies: 0,
    failures: 0,
    lostCheckpoints: 0,
    verified: 0,
    worstStallMs: 0,
  };
}

export class SimulatedPair {
  readonly time = new VirtualTime();
  readonly random: Random;
  readonly link: SimulatedLink;
  readonly hosts: readonly [ModelledHost, ModelledHost];
  readonly policies: Policies;
  /** Whether storage fails. */
  readonly hasFaults: boolean;
  readonly faults: FaultKinds;
  readonly counts = noCounts();
  /** The host whose guests run. */
  active: ModelledHost;
  /** The last checkpoint that was reported. */
  reported: { readonly epoch: number; readonly content: Content } | null = null;
  /** Rejects at the first thing that is wrong. */
  readonly violated: Promise<never>;
  readonly trace: string[] = [];
  readonly #underWay = new Set<Promise<void>>();
  /** Both disks were the same once: from then on only what differs travels. */
  #isBounded = false;
  /** The last answer to a handshake: who shook hands, and whether its dirty maps tell what is missing. */
  #welcome: { readonly host: ModelledHost; readonly isKnown: boolean } | null = null;
  #violate: (error: Error) => void = () => undefined;
  #lastValue = 0;

  constructor(random: Random, replicaTimeoutMs: number, policies: Policies, faults: FaultKinds) {
    this.random = random;
    this.policies = policies;
    this.hasFaults = faults !== "none";
    this.faults = faults;
    this.link = new SimulatedLink(this.time, random);
    const make = (name: string): ModelledHost =>
      new ModelledHost(
        new SimulatedHost({ name, sizes: SIZES, policies, replicaTimeoutMs, faults }, this.time, random),
      );
    this.hosts = [make("A"), make("B")];
    this.active = this.hosts[0];
    this.violated = new Promise((_, reject) => {
      this.#violate = reject;
    });
    this.violated.catch(() => undefined);
    for (const host of this.hosts) this.#wire(host);
  }

  note(what: string): void {
    this.trace.push(`${this.time.nowMs.toFixed(2)} ${what}`);
  }

  fail(what: string): void {
    this.#violate(new Error(what));
  }

  other(host: ModelledHost): ModelledHost {
    return host === this.hosts[0] ? this.hosts[1] : this.hosts[0];
  }

  /** Something goes on beside the schedule; what it throws is a violation. */
  beside(activity: () => Promise<void>): void {
    const done = activity()
      .catch((error: unknown) => {
        this.fail(`${describeError(error)}\n${error instanceof Error ? (error.stack ?? "") : ""}`);
      })
      .finally(() => this.#underWay.delete(done));
    this.#underWay.add(done);
  }

  /** Resolves when no guest waits any more, but for those whose node is dead. */
  async quiet(): Promise<void> {
    await Promise.race([Promise.allSettled(this.#underWay), this.time.sleep(60_000)]);
  }

  randomRun(): Run {
    const zone = this.random.oneOf(ZONES);
    const count = 1 + this.random.below(this.random.below(4) === 0 ? zone.count : Math.min(12, zone.count));
    return { disk: zone.disk, first: zone.first + this.random.below(zone.count - count + 1), count };
  }

  /** A guest's request. */
  guest(host = this.active): void {
    const kind = this.random.oneOf([
      "write",
      "write",
      "write",
      "write",
      "zero",
      "trim",
      "flush",
      "read",
    ] as const);
    if (kind === "flush") this.beside(() => this.#guestFlush(host));
    else if (kind === "read") this.beside(() => this.#guestRead(host, this.randomRun()));
    else this.beside(() => this.#guestChange(host, kind, this.randomRun()));
  }

  async flushAll(): Promise<void> {
    for (const disk of SIZES.keys()) await this.#guestFlush(this.active, disk);
  }

  /** A request of a client of the other host's view. */
  viewer(): void {
    const host = this.other(this.active);
    const { secondary } = host.host;
    if (secondary?.stage !== "running") return;
    if (this.random.below(3) === 0) this.beside(() => this.#viewFlush(host));
    else {
      const kind = this.random.oneOf(["write", "write", "zero"] as const);
      this.beside(() => this.#viewChange(host, kind, this.randomRun()));
    }
  }

  checkpoint(): void {
    const host = this.active;
    const { primary } = host.host;
    if (primary === null) return;
    this.beside(async () => {
      const epoch = await alive(host, primary.checkpoint()).catch((error: unknown) => {
        this.note(`checkpoint refused: ${describeError(error)}`);
        return null;
      });
      if (epoch === null) return;
      this.counts.checkpoints++;
      this.note(`checkpoint ${epoch} reported`);
      this.#reported(host, epoch);
    });
  }

  /** What a host's view has to show is what it shows. Nothing is under way. */
  async verifyView(host: ModelledHost): Promise<void> {
    const { secondary } = host.host;
    if (secondary?.stage !== "running") return;
    const { epoch } = secondary;
    const shown = await alive(host, this.#readZones(host)).catch((error: unknown) => {
      if (!(error instanceof DeviceError) || !host.hasFailed) throw error;
      return null;
    });
    if ((secondary.overlays?.lost ?? null) !== null) this.#verifyLost(secondary, shown);
    if (shown === null || host.host.secondary?.epoch !== epoch) return;
    const wrong = this.viewContents(host, epoch).map((content) =>
      this.#wrongView(host, epoch, content, shown),
    );
    if (wrong.includes(null)) return;
    this.fail(`view of ${host.name} in epoch ${epoch}: ${wrong[0] ?? "no primary began this epoch"}`);
  }

  /** A checkpoint that was given up is shown to nobody, and the node says so. */
  #verifyLost(secondary: Secondary, shown: Content | null): void {
    this.counts.lostCheckpoints++;
    const [option] = secondary.failoverOptions();
    if (secondary.brokenPromise() === null || option?.refusal === null)
      this.fail("the checkpoint is lost, and the node doesn't say so");
    if (shown !== null) this.fail("the checkpoint is lost, and the view can be read");
  }

  /** Whether a host's disks hold what it acknowledged alone and the other one never had. */
  hasOwn(host: ModelledHost): boolean {
    const { received, adopting, host: other } = this.other(host);
    const epoch = other.secondary?.epoch ?? 0;
    for (const [number, values] of adopting) {
      if (number <= epoch) for (const value of values) host.alone.delete(value);
    }
    return [...mediaContent(host).values()].some((value) => host.alone.has(value) && !received.has(value));
  }

  /** What an epoch may have begun with: one thing, unless a crash came between. */
  viewContents(host: ModelledHost, epoch: number): readonly Content[] {
    const known = host.epochs.get(epoch);
    return known === undefined ? (host.candidates.get(epoch) ?? []) : [known];
  }

  /**
   * The view of the last checkpoint is the disk from now on.
   * @returns "dead": the node died before it could be read; "lost": a flush of a client of the view failed while the failover began, and
   * what it may have lost is shown to nobody before the node is started anew
   */
  async takePromotion(host: ModelledHost, to: "checkpoint" | "latest"): Promise<"taken" | "dead" | "lost"> {
    const { secondary } = host.host;
    if (secondary === null) return "dead";
    const { epoch } = secondary;
    // Clients of the view are connected all through: what they were writing is in it, or comes after it.
    const late = [...host.viewWrites];
    while (host.viewWrites.size > 0 && host.host.secondary === secondary) await this.time.sleep(1);
    const shown = await alive(host, this.#readZones(host)).catch((error: unknown) => {
      if (!(error instanceof DeviceError) || (secondary.overlays?.lost ?? null) === null) throw error;
      return "lost" as const;
    });
    if (shown === "lost") return shown;
    if (shown === null || host.host.secondary !== secondary) return "dead";
    if (to === "latest") for (const { run, values } of late) host.disk.issue(run, values);
    if (to === "checkpoint") {
      const wrong = this.viewContents(host, epoch).map((content) =>
        this.#wrongView(host, epoch, content, shown),
      );
      if (!wrong.includes(null))
        this.fail(`failover of ${host.name} to epoch ${epoch}: ${wrong[0] ?? "unknown"}`);
      const base = new Map<number, readonly Value[]>();
      const [content] = this.viewContents(host, epoch);
      for (const [key, value] of shown) {
        const { disk, sector } = placeOf(key);
        const before = host.views.get(epoch)?.valuesAt(disk, sector) ?? [];
        base.set(key, [...new Set([content?.get(key) ?? 0, ...before, value])]);
      }
      host.disk = History.from(base);
      // What a client of the view had not flushed may still be lost.
    } else {
      // The node says that it may lack what it acknowledged: it told its primary, or refuses checkpoints.
      if (host.hasFailed) host.disk.fallBack();
      for (const [key, value] of shown) {
        const { disk, sector } = placeOf(key);
        const wrong = host.disk.check(disk, sector, value);
        if (wrong !== null) this.fail(`failover of ${host.name} to the latest: ${wrong}`);
      }
    }
    host.views.clear();
    host.epochs.clear();
    host.candidates.clear();
    return "taken";
  }

  /** Both disks are the same, byte for byte, and as the guests left them. Nothing is under way. */
  verifyDisks(isWhole: boolean): void {
    const [first, second] = this.hosts;
    const { active } = this;
    const [one, two] = [mediaContent(first), mediaContent(second)];
    for (const [key, value] of one) {
      if (two.get(key) === value) continue;
      const { disk, sector } = placeOf(key);
      this.fail(
        `sector ${sector} of disk ${disk} is ${value} on A and ${two.get(key) ?? -1} on B after the resync`,
      );
    }
    if (isWhole) this.#compareAll();
    this.checkMedia(active);
    for (const host of this.hosts) {
      this.settleMedia(host, true);
      host.touched.clear();
      host.hasCrashed = false;
      host.alone.clear();
      host.mustRefuse = false;
      host.isReplaced = false;
      host.isGivenUp = false;
      host.hasLostProgress = false;
      host.forgetFailures();
      host.adopting.clear();
    }
    this.#isBounded = true;
    this.counts.verified++;
  }

  #compareAll(): void {
    const { active } = this;
    for (const [index, medium] of active.host.media.entries()) {
      const other = this.other(active).host.media[index];
      if (other?.contents().equals(medium.contents()) !== true) {
        const [one, two] = [medium.contents(), other?.contents() ?? Buffer.alloc(0)];
        const at = one.findIndex((byte, place) => byte !== two[place]);
        this.fail(
          `disk ${index} differs at sector ${Math.floor(at / SECTOR_BYTES)}, where no guest has written`,
        );
      }
    }
  }

  /** What a host's disks hold is what they may hold. */
  checkMedia(host: ModelledHost): void {
    for (const [key, value] of mediaContent(host)) {
      const { disk, sector } = placeOf(key);
      const wrong = host.disk.check(disk, sector, value);
      if (wrong !== null) this.fail(`disk of ${host.name}: ${wrong}`);
    }
  }

  settleMedia(host: ModelledHost, isDurable: boolean): void {
    for (const [key, value] of mediaContent(host)) {
      const { disk, sector } = placeOf(key);
      host.disk.settle(disk, sector, value, isDurable);
    }
  }

  /** Blocks that a resync may send: what either side changed alone, as far as the primary can know. */
  #checkMissed(host: ModelledHost, isKnown: boolean): void {
    const { primary } = host.host;
    if (!isKnown || !this.#isBounded || host.hasLostProgress || this.other(host).hasLostProgress) return;
    if (this.hosts.some(({ hasLostTrack }) => hasLostTrack)) return;
    const other = this.other(host);
    const touched = new Set([...host.touched, ...other.touched]);
    const hot = new Set(
      [host, other].filter(({ hasCrashed }) => hasCrashed).flatMap(({ extents }) => [...extents]),
    );
    for (const [index, { dirty }] of (primary?.disks ?? []).entries()) {
      for (const [offset, lengthBytes] of dirty.missedRuns(4096)) {
        for (
          let block = offset / DIRTY_BLOCK_BYTES;
          block * DIRTY_BLOCK_BYTES < offset + lengthBytes;
          block++
        ) {
          const name = blockName(index, block);
          if (touched.has(name) || hot.has(extentOfBlock(name))) continue;
          this.fail(`block ${block} of disk ${index} is resynced although nobody changed it`);
        }
      }
    }
  }

  #wire(host: ModelledHost): void {
    host.host.events = {
      server: {
        received: (disk, request) => this.#received(host, disk, request),
        command: (request) => this.#command(host, request),
      },
      dialler: {
        control: (timeoutMs) =>
          this.#dial(
            host,
            timeoutMs,
            () => true,
            (server, far) => {
              server.acceptControl(far);
            },
          ),
        disk: async (name, timeoutMs) => {
          const refused: string[] = [];
          const end = await this.#dial(
            host,
            timeoutMs,
            (server) => server.isListening,
            (server, far) => {
              const refusal = server.acceptDisk(far, name);
              if (refusal === null) return;
              refused.push(refusal);
              far.close();
            },
          ).catch((error: unknown) => {
            const [refusal] = refused;
            throw refusal === undefined ? error : refusedExport(refusal);
          });
          const medium = host.host.media[Number(name.slice("disk".length).split("@")[0])];
          if (medium === undefined) throw new Error(`no ${name}`);
          return { end, info: medium.info };
        },
        instant: () => mediaContent(host),
      },
      died: (death) => {
        this.#died(host, death);
      },
      flushFailed: () => {
        this.note(`a flush of ${host.name} failed`);
        host.disk.fallBack();
        host.losesTrack();
      },
      stateFailed: () => {
        host.losesTrack();
        this.note(`the state directory of ${host.name} failed`);
        for (const view of host.views.values()) view.fallBack();
      },
      linkChanged: (state) => {
        if (state === "resyncing" && this.#welcome?.host === host) {
          this.#checkMissed(host, this.#welcome.isKnown);
          this.#welcome = null;
        }
      },
    };
  }

  #dial(
    host: ModelledHost,
    timeoutMs: number,
    isListening: (server: SimulatedServer) => boolean,
    accept: (server: SimulatedServer, end: End) => void,
  ): Promise<End> {
    const other = this.other(host).host;
    return host.host.dialled(() =>
      this.link.dial(
        () => {
          const { life } = other;
          const server = life?.server ?? null;
          if (server === null || !isListening(server)) return null;
          return (far) => {
            life?.ends.add(far);
            accept(server, far);
          };
        },
        () => other.isDown,
        timeoutMs,
      ),
    );
  }

  #died(host: ModelledHost, death: Death): void {
    this.counts.crashes++;
    this.note(`${host.name} ${death}`);
    host.hasCrashed = true;
    if (this.time.nowMs - host.welcomedMs < PROGRESS_MS) host.hasLostProgress = true;
    const isPrimary = host.role === "primary" || host === this.active;
    // A secondary acknowledges from its memory; what a primary acknowledged is in the kernel's at least.
    if (death === "power lost" || !isPrimary || host.isCommitting) host.disk.fallBack();
    for (const view of host.views.values()) view.fallBack();
    if (host.isCommitting) return;
    this.checkMedia(host);
    this.settleMedia(host, death === "power lost");
  }

  #received(host: ModelledHost, disk: number, request: DiskRequest): () => void {
    const { kind, offset, lengthBytes, data, flags } = request;
    const isDurable = (flags & Flag.Fua) !== 0;
    if (kind === "flush") {
      const done = host.disk.flushOf(disk);
      return done;
    }
    if (kind !== "write" && kind !== "zero") return () => undefined;
    const changes: Change[] = [];
    for (const run of runsIn(disk, offset, lengthBytes)) {
      const start = run.first * SECTOR_BYTES - offset;
      const values =
        data === undefined
          ? Array<Value>(run.count).fill(0)
          : valuesOf(data.subarray(start, start + run.count * SECTOR_BYTES));
      changes.push(host.disk.issue(run, values));
      for (const value of values) if (value !== 0) host.received.add(value);
    }
    return () => {
      for (const change of changes) host.disk.acknowledge(change, isDurable);
    };
  }

  #command(host: ModelledHost, { name, args, instant }: QmpRequest): (answer: unknown) => void {
    const { secondary } = host.host;
    if (name === "x-repl-handshake") {
      const before = secondary?.epoch ?? 0;
      this.note(`${host.name} is greeted in epoch ${before}, ${secondary?.stage ?? ""}`);
      // A node that comes back begins an epoch of its own, with what it has.
      if (secondary?.stage === "none") addTo(host.candidates, before + 1, mediaContent(host));
      return (answer) => {
        // What it acknowledged and lost is to be sent again: later flushes don't answer for it.
        if (host.hasFailed) host.disk.fallBack();
        const isKnown = (answer as { known: boolean }).known;
        const tellsHistory =
          this.policies.ackMode !== "async" && !this.hosts.some((each) => each.hasLostTrack);
        if (host.mustRefuse && tellsHistory)
          this.fail(
            `${host.name} acknowledged what the new primary lacks, and takes its writes all the same`,
          );
        const epoch = secondary?.epoch ?? 0;
        if (epoch !== before && host.host.secondary === secondary) host.epochs.set(epoch, mediaContent(host));
        this.note(`${host.name} answers: ${isKnown ? "known" : "not known"}, epoch ${epoch}`);
        if (!isKnown) {
          this.counts.fullCopies++;
          if (this.#isBounded && !host.isGivenUp && !this.hosts.some(({ hasLostTrack }) => hasLostTrack))
            this.fail(
              `${this.other(host).name} has to copy everything to ${host.name}, which was its replica`,
            );
          this.#isBounded = false;
        }
        this.other(host).welcomedMs = this.time.nowMs;
        this.#welcome = { host: this.other(host), isKnown };
      };
    }
    if (name !== "x-repl-checkpoint") return () => undefined;
    const content = instant as Content;
    const { epoch, prepare } = args as { epoch: number; prepare?: boolean };
    if (prepare === true) return () => undefined;
    addTo(host.candidates, epoch, content);
    // The primary says that nothing is missing: what it acknowledged alone is here by now.
    host.adopting.set(epoch, [...this.other(host).alone]);
    return () => {
      host.epochs.set(epoch, content);
      // A view write that was under way falls before the instant or after it.
      for (const { run, values } of host.viewWrites) host.view(epoch).issue(run, values);
    };
  }

  #reported(host: ModelledHost, epoch: number): void {
    const other = this.other(host);
    const content = other.epochs.get(epoch);
    const isThere = (other.host.secondary?.epoch ?? epoch) >= epoch;
    if (content === undefined) {
      if (isThere && other.host.secondary?.stage === "running")
        this.fail(`checkpoint ${epoch} was reported, and ${other.name} knows nothing of it`);
      return;
    }
    if (this.reported === null || epoch > this.reported.epoch) this.reported = { epoch, content };
  }

  async #guestChange(host: ModelledHost, kind: "write" | "zero" | "trim", run: Run): Promise<void> {
    const device = host.host.guestDisk(run.disk);
    if (device === null) return;
    const value = kind === "write" ? ++this.#lastValue : 0;
    const values = Array<Value>(run.count).fill(value);
    const offset = run.first * SECTOR_BYTES;
    const lengthBytes = run.count * SECTOR_BYTES;
    const flags = this.random.below(8) === 0 ? Flag.Fua : Flag.None;
    for (const name of blocksOf(run)) {
      host.touched.add(name);
      host.extents.add(extentOfBlock(name));
    }
    const change = host.disk.issue(run, values);
    const life = host.host.life;
    const wasMerging = this.#isMerging(host);
    const isAttached = (host.host.primary?.link ?? null) !== null;
    const { flushFailures } = host.host;
    const startMs = this.time.nowMs;
    this.counts.guestChanges++;
    try {
      if (kind === "write") await alive(host, device.write(offset, contentOf(value, run.count), flags));
      else if (kind === "zero") await alive(host, device.zero(offset, lengthBytes, flags));
      else await alive(host, device.trim(offset, lengthBytes, flags));
    } catch (error) {
      this.#guestFailed(host, wasMerging, error);
      return;
    }
    if (host.host.life !== life) return;
    this.counts.worstStallMs = Math.max(this.counts.worstStallMs, this.time.nowMs - startMs);
    host.disk.acknowledge(change, (flags & Flag.Fua) !== 0);
    this.#checkAcknowledged(host, run, value, { isAttached, flushFailures });
  }

  /** Where an acknowledged change is: at the replica, or known to be missing there. @param issued how things were when it began */
  #checkAcknowledged(
    host: ModelledHost,
    run: Run,
    value: Value,
    issued: { readonly isAttached: boolean; readonly flushFailures: number },
  ): void {
    if (value === 0) return;
    const isReplicated = this.other(host).received.has(value);
    if (isReplicated) return;
    const { ackMode, onReplicaError } = this.policies;
    // A newer change may have taken its place before it could be sent again.
    const bytes = host.host.media[run.disk]?.contents(run.first * SECTOR_BYTES, run.count * SECTOR_BYTES);
    if (bytes === undefined) return;
    const shown = [...valuesOf(bytes).entries()].filter(([, each]) => each === value);
    if (shown.length === 0) return;
    // A flush that failed has brought back what the newer change had taken the place of.
    const isOutdated = shown.every(
      ([index]) => host.disk.valuesAt(run.disk, run.first + index).at(-1) !== value,
    );
    if (host.host.flushFailures > issued.flushFailures && isOutdated) return;
    if (onReplicaError === "stop" && ackMode !== "async" && issued.isAttached) {
      this.fail(
        `${host.name} acknowledged write ${value}, which its replica lacks, and was not to go on without it`,
      );
    }
    host.alone.add(value);
    if (host.isReplaced) host.mustRefuse = true;
    if (this.policies.ackMode === "async") return;
    const dirty = host.host.primary?.disks[run.disk]?.dirty;
    if (dirty === undefined) return;
    const offset = run.first * SECTOR_BYTES;
    for (
      let at = offset - (offset % DIRTY_BLOCK_BYTES);
      at < offset + run.count * SECTOR_BYTES;
      at += DIRTY_BLOCK_BYTES
    ) {
      if (dirty.nextMissed(at, DIRTY_BLOCK_BYTES)?.offset !== at) {
        this.fail(
          `${host.name} acknowledged write ${value}, which the replica lacks and the dirty map doesn't name`,
        );
      }
    }
  }

  async #guestFlush(host: ModelledHost, disk = this.random.below(SIZES.length)): Promise<void> {
    const device = host.host.guestDisk(disk);
    if (device === null) return;
    const life = host.host.life;
    const wasMerging = this.#isMerging(host);
    const done = host.disk.flushOf(disk);
    try {
      await alive(host, device.flush());
    } catch (error) {
      this.#guestFailed(host, wasMerging, error);
      return;
    }
    if (host.host.life === life) done();
  }

  async #guestRead(host: ModelledHost, run: Run): Promise<void> {
    const device = host.host.guestDisk(run.disk);
    if (device === null) return;
    const life = host.host.life;
    const wasMerging = this.#isMerging(host);
    const allowed = host.disk.snapshot(run);
    const content = Buffer.alloc(run.count * SECTOR_BYTES);
    try {
      await alive(host, device.read(run.first * SECTOR_BYTES, content));
    } catch (error) {
      this.#guestFailed(host, wasMerging, error);
      return;
    }
    if (host.host.life !== life) return;
    for (const [index, value] of valuesOf(content).entries()) {
      const wrong = allowed(index, value);
      if (wrong !== null) this.fail(`a guest of ${host.name} read: ${wrong}`);
    }
  }

  /** Until a failover's merge is over, what its guests write goes to a file of the state directory: that is their disk as well. */
  #isMerging(host: ModelledHost): boolean {
    const stage = host.host.secondary?.stage;
    return stage === "failover" || stage === "failover-failed";
  }

  /** @param wasMerging when the request began: the merge may have ended before it failed */
  #guestFailed(host: ModelledHost, wasMerging: boolean, error: unknown): void {
    if (error instanceof DeviceError) {
      const hasFailed = wasMerging || this.#isMerging(host) ? host.hasFailed : host.hasDiskFailed;
      if (host.guestErrorsAllowed || (hasFailed && error.errno !== "ESHUTDOWN")) return;
      // What waits for the replica when its node is stopped is refused.
      if (host.isStopping && this.policies.onReplicaError === "stop") return;
    }
    throw error;
  }

  async #viewChange(host: ModelledHost, kind: "write" | "zero", run: Run): Promise<void> {
    const { secondary } = host.host;
    const device = host.host.guestDisk(run.disk);
    if (secondary === null || device === null) return;
    // Which of two that overlap and are under way together comes last is anybody's guess.
    if ([...host.viewWrites].some((other) => areOverlapping(other.run, run))) return;
    const value = kind === "write" ? ++this.#lastValue : 0;
    const values = Array<Value>(run.count).fill(value);
    const { epoch } = secondary;
    const write = { run, values };
    const offset = run.first * SECTOR_BYTES;
    // A failover may keep it.
    for (const name of blocksOf(run)) host.touched.add(name);
    const change = host.view(epoch).issue(run, values);
    host.viewWrites.add(write);
    const isDone = await alive(
      host,
      kind === "write"
        ? device.write(offset, contentOf(value, run.count), 0)
        : device.zero(offset, run.count * SECTOR_BYTES, 0),
    ).then(
      (result) => result !== null,
      () => false,
    );
    host.viewWrites.delete(write);
    if (!isDone || host.host.secondary !== secondary) return;
    if (secondary.epoch === epoch) host.view(epoch).acknowledge(change);
    else host.view(secondary.epoch).issue(run, values);
  }

  async #viewFlush(host: ModelledHost): Promise<void> {
    const { secondary } = host.host;
    if (secondary === null) return;
    const { epoch } = secondary;
    const done = host.view(epoch).flush();
    for (const index of SIZES.keys()) {
      const flushed = await alive(host, host.host.guestDisk(index)?.flush() ?? Promise.resolve()).then(
        (result) => result !== null,
        () => false,
      );
      if (!flushed) return;
    }
    if (host.host.secondary === secondary && secondary.epoch === epoch) done();
  }

  #wrongView(host: ModelledHost, epoch: number, content: Content, shown: Content): string | null {
    const written = host.views.get(epoch);
    for (const [key, value] of shown) {
      const { disk, sector } = placeOf(key);
      const base = content.get(key) ?? 0;
      const wrong = written?.checkOver(disk, sector, value, base) ?? null;
      if (wrong !== null) return wrong;
      if (written === undefined && value !== base)
        return `sector ${sector} of disk ${disk} holds ${value}, not ${base}`;
    }
    return null;
  }

  async #readZones(host: ModelledHost): Promise<Content> {
    const content = new Map<number, Value>();
    for (const { disk, first, count } of ZONES) {
      const device: BlockDevice | null = host.host.guestDisk(disk);
      const bytes = Buffer.alloc(count * SECTOR_BYTES);
      await device?.read(first * SECTOR_BYTES, bytes);
      for (const [index, value] of valuesOf(bytes).entries()) content.set(keyOf(disk, first + index), value);
    }
    return content;
  }
}

function areOverlapping(one: Run, other: Run): boolean {
  return (
    one.disk === other.disk && one.first < other.first + other.count && other.first < one.first + one.count
  );
}

/** What a promise of a node brings; null if the node dies first. */
export async function alive<T>(host: ModelledHost, promise: Promise<T>): Promise<T | null> {
  const life = host.host.life;
  if (life === null) {
    promise.catch(() => undefined);
    return null;
  }
  return Promise.race([promise, life.power.failed.then(() => null)]);
}

export function mediaContent({ host }: ModelledHost): Content {
  const content = new Map<number, Value>();
  for (const { disk, first, count } of ZONES) {
    const bytes = host.media[disk]?.contents(first * SECTOR_BYTES, count * SECTOR_BYTES) ?? Buffer.alloc(0);
    for (const [index, value] of valuesOf(bytes).entries()) content.set(keyOf(disk, first + index), value);
  }
  return content;
}

function placeOf(key: number): { readonly disk: number; readonly sector: number } {
  return { disk: Math.floor(key / 2 ** 32), sector: key % 2 ** 32 };
}

function addTo(map: Map<number, Content[]>, epoch: number, content: Content): void {
  map.set(epoch, [...(map.get(epoch) ?? []), content]);
}

/** The parts of a range of bytes that lie in zones. */
function runsIn(disk: number, offset: number, lengthBytes: number): Run[] {
  const [start, end] = [offset / SECTOR_BYTES, (offset + lengthBytes) / SECTOR_BYTES];
  return ZONES.filter((zone) => zone.disk === disk).flatMap((zone) => {
    const first = Math.max(start, zone.first);
    const count = Math.min(end, zone.first + zone.count) - first;
    return count > 0 ? [{ disk, first, count }] : [];
  });
}

function blockName(disk: number, block: number): string {
  return `${disk}:${block}`;
}

function blocksOf({ disk, first, count }: Run): string[] {
  const firstBlock = Math.floor((first * SECTOR_BYTES) / DIRTY_BLOCK_BYTES);
  const lastBlock = Math.floor(((first + count) * SECTOR_BYTES - 1) / DIRTY_BLOCK_BYTES);
  return Array.from({ length: lastBlock - firstBlock + 1 }, (_, index) =>
    blockName(disk, firstBlock + index),
  );
}

function extentOfBlock(name: string): string {
  const [disk = "", block = ""] = name.split(":");
  return `${disk}:${Math.floor((Number(block) * DIRTY_BLOCK_BYTES) / EXTENT_BYTES)}`;
}

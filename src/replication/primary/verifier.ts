/**
 * Runs the verifies that operators ask for, through losses of the link.
 *
 * Invariants:
 * - One verify a disk at a time.
 * - When the link is lost, what is asked of the replica is given up at once: guests that wait for a piece wait no
 *   longer than for the link. A verify that twice in a row compared nothing has failed.
 */
import type { Logger } from "pino";
import { type Clock, pause } from "../../clock.js";
import { Deferred } from "../../deferred.js";
import { asError, LinkError, StateError, UnreachableError } from "../../errors.js";
import type { Endpoint } from "../../net/endpoint.js";
import { QmpError } from "../../qmp/errors.js";
import type { LinkState, VerifyReport } from "../../status.js";
import type { Link } from "./link.js";
import type { PrimaryDisk } from "./disk.js";
import { RateLimit } from "./rate-limit.js";
import { ReplicaDigests } from "./replica-digests.js";
import type { ReplicaNetwork } from "./replica-network.js";
import { Verify } from "./verify.js";

/** Between two attempts: the link needs a moment to notice what the verify has noticed. */
const PAUSE_MS = 500;

export interface VerifierOptions {
  readonly disks: readonly PrimaryDisk[];
  readonly timeoutMs: number;
  readonly network: Pick<ReplicaNetwork, "commands">;
  readonly link: () => Link | null;
  /** The replica's control; null: it has none that we know. */
  readonly control: () => Endpoint | null;
  readonly clock: Clock;
  readonly log: Logger;
  readonly verifyEnded: (verify: Verify, report: VerifyReport) => void;
}

export interface VerifyRequest {
  /** null: all disks. */
  readonly disk: string | null;
  readonly repair: boolean;
  /** 0: no limit. */
  readonly bytesPerSecond: number;
}

interface Running {
  readonly verify: Verify;
  readonly ended: Promise<void>;
}

export class Verifier {
  readonly #options: VerifierOptions;
  readonly #running = new Map<PrimaryDisk, Running>();
  readonly #reports = new Map<PrimaryDisk, VerifyReport>();
  readonly #open = new Set<ReplicaDigests>();
  #isReplicating = false;
  /** Resolves when the replica takes every change again. */
  #replicating = new Deferred<undefined>();

  constructor(options: VerifierOptions) {
    this.#options = options;
  }

  get verifies(): readonly Verify[] {
    return [...this.#running.values()].map(({ verify }) => verify);
  }

  /** What the last verify of a disk found, since this start, unless everything was copied anew after it. */
  lastReport(disk: PrimaryDisk): VerifyReport | null {
    return this.#reports.get(disk) ?? null;
  }

  /** @throws StateError if the replica can't be compared now, or is being compared */
  start({ disk: name, repair, bytesPerSecond }: VerifyRequest): void {
    const disks = this.#options.disks.filter((disk) => name === null || disk.name === name);
    if (disks.length === 0) throw new StateError("no-such-disk", `there is no disk ${name ?? ""}`);
    this.#refuse(disks);
    for (const disk of disks) {
      const verify = new Verify(disk, { repair, rate: new RateLimit(bytesPerSecond) });
      this.#running.set(disk, { verify, ended: this.#run(verify) });
    }
  }

  /** Cancels all of them; resolves when they have ended, which may be after the link has. */
  async cancel(): Promise<void> {
    const running = [...this.#running.values()];
    for (const { verify } of running) verify.cancel();
    this.#giveUp();
    await Promise.all(running.map(({ ended }) => ended));
  }

  /** To be told of the link's states. */
  linkChanged(state: LinkState): void {
    const wasReplicating = this.#isReplicating;
    this.#isReplicating = state === "replicating";
    if (this.#isReplicating) {
      this.#replicating.resolve(undefined);
      return;
    }
    // Of an outage, which has several states, those who wait for its end wait for one promise.
    if (wasReplicating) this.#replicating = new Deferred();
    if (state === "resyncing") this.#forgetReports();
    this.#giveUp();
  }

  /** What the replica lacks as a whole it gets as a whole, what differed with the rest. Before it is known what it has kept, it may lack more. */
  #forgetReports(): void {
    for (const disk of this.#reports.keys()) {
      if (disk.dirty.missedBytes >= disk.local.info.sizeBytes) this.#reports.delete(disk);
    }
  }

  #refuse(disks: readonly PrimaryDisk[]): void {
    const link = this.#options.link();
    const reason = (text: string): StateError => new StateError("verify-refused", `verify refused: ${text}`);
    if (link === null) throw reason("no replica is attached");
    if (this.#options.control() === null) {
      throw reason(
        "a replica that a manager drives can't be asked for digests; attach a repl-secondary with --replica-qmp",
      );
    }
    if (link.state !== "replicating") throw reason(`the replica is ${link.state}`);
    if (!link.hasDigests)
      throw reason(
        "a QEMU can't be asked for digests: stop the guest and compare both exports by qemu-img compare",
      );
    const busy = disks.find((disk) => this.#running.has(disk));
    if (busy !== undefined) throw reason(`a verify of ${busy.name} runs already`);
  }

  #giveUp(): void {
    for (const digests of this.#open) digests.close();
  }

  /** Never rejects. */
  async #run(verify: Verify): Promise<void> {
    const { log, verifyEnded } = this.#options;
    const { name: disk } = verify.disk;
    log.info({ disk }, "verify begins");
    const failure = await this.#attempts(verify).then(
      () => null,
      (error: unknown) => (verify.isCancelled ? null : asError(error)),
    );
    const report = verify.report(failure);
    this.#reports.set(verify.disk, report);
    this.#running.delete(verify.disk);
    const { outcome, comparedBytes, differingBytes, repairedBytes, differences } = report;
    const facts = { disk, outcome, comparedBytes, differingBytes, repairedBytes };
    if (differingBytes > 0) log.error({ ...facts, differences }, "the replica differs");
    else if (failure !== null) log.error({ ...facts, error: failure.message }, "verify failed");
    else log.info(facts, "verify ended");
    verifyEnded(verify, report);
  }

  async #attempts(verify: Verify): Promise<void> {
    let isLastChance = false;
    for (;;) {
      await untilAborted(this.#replicating.promise, verify.signal);
      if (verify.isCancelled) return;
      const doneBefore = verify.doneBytes;
      try {
        await this.#attempt(verify);
        return;
      } catch (error) {
        if (verify.signal.aborted || !isInterruption(error)) throw error;
        // A secondary that is silent holds up the guests: the link must not go on with it either.
        if (error instanceof LinkError && error.code === "timeout") this.#options.link()?.giveUp(error);
        if (isLastChance && verify.doneBytes === doneBefore) throw error;
        isLastChance = verify.doneBytes === doneBefore;
        this.#options.log.warn(
          { disk: verify.disk.name, error: asError(error).message },
          "verify interrupted: it goes on when the replica is there",
        );
      }
      await pause(this.#options.clock, PAUSE_MS, verify.signal);
    }
  }

  async #attempt(verify: Verify): Promise<void> {
    const { timeoutMs, disks, network } = this.#options;
    const control = this.#options.control();
    const link = this.#options.link();
    const replica = link?.replica(disks.indexOf(verify.disk)) ?? null;
    if (control === null || link === null || replica === null) {
      throw new LinkError("link-lost", "the replica is not there");
    }
    const digests = new ReplicaDigests(network, control, timeoutMs, link.session);
    this.#open.add(digests);
    try {
      await verify.run({ digests, replica, isReplicating: () => link.state === "replicating" });
    } finally {
      this.#open.delete(digests);
      digests.close();
    }
  }
}

/** Whether the verify can go on when the link is there again. */
function isInterruption(error: unknown): boolean {
  if (error instanceof QmpError) return error.code === "session-lost";
  return error instanceof LinkError || error instanceof UnreachableError;
}

/** Resolves when either does. */
async function untilAborted(wait: Promise<unknown>, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  const aborted = new Deferred<undefined>();
  const onAbort = (): void => {
    aborted.resolve(undefined);
  };
  signal.addEventListener("abort", onAbort);
  await Promise.race([wait, aborted.promise]);
  signal.removeEventListener("abort", onAbort);
}

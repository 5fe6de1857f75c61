/** Random lives of a pair: what guests, operators, networks, disks and power supplies do, step by step. */
import { asError, describeError, ReplError, StateError } from "../../src/errors.js";
import type { FailoverTarget, Stage } from "../../src/replication/stage.js";
import { Random } from "../tools/seed.js";
import { REPLICA_ERROR_POLICIES } from "../../src/status.js";
import type { ComeBack, Death, FaultKinds, Policies } from "./simulated-host.js";
import { alive, type Counts, mediaContent, type ModelledHost, SimulatedPair } from "./simulated-pair.js";

/** Short, so that much happens within one. */
const REPLICA_TIMEOUT_MS = 500;
/** What a node asked for before it died is done by then, or will not be. */
const ON_ITS_WAY_MS = 2000;
const ADDRESS = { kind: "unix", path: "simulated" } as const;
/** Of what fails in a state directory, by kind and file; null: anything. */
const STATE_PATTERNS = [
  null,
  /metadata/,
  /dirty-/,
  /hidden-/,
  /active-/,
  /^(?:rename|remove|truncate)/,
  /^sync/,
] as const;
/** Refusals for the sake of a history, which the operator settles. */
const HISTORIES: ReadonlySet<string> = new Set(["split-brain", "newer-data", "unrelated-data"]);

export interface ScheduleOptions {
  /** What fails; policies are drawn if anything does. A seed is another schedule then. */
  readonly faults: FaultKinds;
}

/** Runs one schedule. @throws Error at the first thing that is wrong, with what had happened until then */
export async function runSchedule(
  seed: number,
  steps: number,
  { faults }: ScheduleOptions = { faults: "none" },
): Promise<Counts> {
  const random = new Random(seed);
  const hasFaults = faults !== "none";
  const ackMode = random.oneOf(["memsync", "memsync", "sync", "async"] as const);
  const policies: Policies = {
    ackMode,
    onReplicaError: hasFaults ? random.oneOf(REPLICA_ERROR_POLICIES) : "continue",
    onUndoError: hasFaults
      ? random.oneOf(["break-checkpoint", "break-replication"] as const)
      : "break-checkpoint",
  };
  const pair = new SimulatedPair(random, REPLICA_TIMEOUT_MS, policies, faults);
  try {
    await pair.time.until(Promise.race([live(pair, steps), pair.violated]));
  } catch (error) {
    const trace = pair.trace.slice(-60).join("\n");
    const options = Object.values({ ...policies, ...(hasFaults && { faults: `faults of ${faults}` }) }).join(
      ", ",
    );
    throw new Error(`seed ${seed}, ${options}: ${describeError(error)}\n${trace}`, { cause: error });
  }
  for (const { host } of pair.hosts) pair.counts.failures += host.failures;
  return pair.counts;
}

async function live(pair: SimulatedPair, steps: number): Promise<void> {
  pair.hosts[1].role = "secondary";
  await start(pair, pair.hosts[1]);
  await start(pair, pair.hosts[0]);
  await attach(pair);
  if (pair.random.below(4) > 0) await settle(pair);
  for (let step = 0; step < steps; step++) {
    await doSomething(pair);
    await pair.time.sleep(pair.random.below(4) === 0 ? pair.random.below(1500) : pair.random.below(20));
  }
  await settle(pair, true);
}

async function doSomething(pair: SimulatedPair): Promise<void> {
  const { random } = pair;
  if (pair.hasFaults && random.below(5) === 0) return failStorage(pair);
  const roll = random.below(100);
  if (roll < 38) return guests(pair, pair.active);
  if (roll < 46) return viewers(pair);
  if (roll < 58) {
    pair.checkpoint();
    return;
  }
  if (roll < 68) return disturbLink(pair);
  if (roll < 80) return crash(pair);
  if (roll < 83) return restart(pair);
  if (roll < 86) return stallDisk(pair);
  if (roll < 91) return failover(pair);
  if (roll < 94) return switchOver(pair);
  if (roll < 97) return revive(pair);
  return settle(pair);
}

async function guests(pair: SimulatedPair, host: ModelledHost): Promise<void> {
  for (let count = pair.random.below(16); count > 0; count--) {
    pair.guest(host);
    if (pair.random.below(2) === 0) await pair.time.sleep(pair.random.below(40) / 10);
  }
}

async function viewers(pair: SimulatedPair): Promise<void> {
  for (let count = pair.random.below(6); count > 0; count--) {
    pair.viewer();
    await pair.time.sleep(pair.random.below(20) / 10);
  }
}

async function disturbLink(pair: SimulatedPair): Promise<void> {
  const { link, random } = pair;
  const mode = random.oneOf(["cut", "cut", "stalled", "stalled", "lost", "up"] as const);
  const slowness = mode === "up" ? random.oneOf([1, 10, 200]) : 1;
  pair.note(`link ${mode}, ${slowness} times as slow`);
  link.set(mode, slowness);
  if (random.below(3) === 0) return guests(pair, pair.active);
  await pair.time.sleep(random.below(3) === 0 ? random.below(3000) : random.below(100));
  if (random.below(4) > 0) healLink(pair);
}

function healLink(pair: SimulatedPair): void {
  pair.note("link up");
  pair.link.set("up");
}

async function crash(pair: SimulatedPair): Promise<void> {
  const { random } = pair;
  const victims = random.below(4) === 0 ? pair.hosts : [random.oneOf(pair.hosts)];
  for (const { host } of victims) {
    const death: Death = random.oneOf(["killed", "power lost"]);
    if (random.below(3) === 0) pair.beside(() => host.die(death));
    else host.dieAfter(random.below(60), death);
  }
  await guests(pair, pair.active);
  if (random.below(2) === 0) pair.checkpoint();
  if (random.below(2) === 0) return;
  await pair.time.sleep(random.below(600));
  await revive(pair);
}

/** Starts what is dead. */
async function revive(pair: SimulatedPair): Promise<void> {
  for (const host of pair.hosts) if (host.host.life === null) await start(pair, host);
  await attach(pair);
}

async function restart(pair: SimulatedPair): Promise<void> {
  const host = pair.random.oneOf(pair.hosts);
  // Guests of a node that is stopped are disconnected first.
  await pair.quiet();
  await finishCommit(pair, host);
  pair.note(`${host.name} is stopped`);
  if (await stop(pair, host)) settleStopped(pair, host);
  await start(pair, host);
  await attach(pair);
}

/** A view's clients are disconnected first, with what they asked for done. @returns whether it came so far */
async function stop(pair: SimulatedPair, host: ModelledHost): Promise<boolean> {
  while (host.viewWrites.size > 0) await pair.time.sleep(1);
  host.isStopping = true;
  try {
    return await host.host.stop();
  } finally {
    host.isStopping = false;
  }
}

/** A node that was stopped has made everything durable. */
function settleStopped(pair: SimulatedPair, host: ModelledHost): void {
  if (host.isCommitting) return;
  if (host !== pair.active && host.hasFailed) host.disk.fallBack();
  pair.checkMedia(host);
  pair.settleMedia(host, true);
}

async function stallDisk(pair: SimulatedPair): Promise<void> {
  const { host } = pair.random.oneOf(pair.hosts);
  for (const latency of host.latencies) latency.stall(pair.random.below(900));
  await guests(pair, pair.active);
}

/** A disk of either host, or the log of before-images, fails for some requests, or until it is mended. */
async function failStorage(pair: SimulatedPair): Promise<void> {
  const { random } = pair;
  const host = random.oneOf(pair.hosts);
  if (pair.faults === "all" && random.below(2) === 0) failFlushOrState(pair, host);
  else failRequests(pair, host);
  await guests(pair, pair.active);
  if (random.below(2) === 0) pair.checkpoint();
  await pair.time.sleep(random.below(300));
  const viewed = pair.other(pair.active);
  if (random.below(2) === 0) {
    while (viewed.viewWrites.size > 0) await pair.time.sleep(1);
    await pair.verifyView(viewed);
  }
  if (random.below(2) === 0) host.host.mend();
}

function failRequests(pair: SimulatedPair, host: ModelledHost): void {
  const { random } = pair;
  const isUndo = random.below(2) === 0;
  const faults = isUndo ? host.host.undoFaults : random.oneOf(host.host.diskFaults).requests;
  const errno = random.oneOf(["EIO", "ENOSPC"] as const);
  const count = random.oneOf([1, 1, 2, 5, 50]);
  pair.note(`${isUndo ? "log of before-images" : "a disk"} of ${host.name} fails ${count} times: ${errno}`);
  faults.set(count, errno);
}

/** A flush of a disk fails, or changes of the state directory: any, or those of some files, or of some kind. */
function failFlushOrState(pair: SimulatedPair, { host, name }: ModelledHost): void {
  const { random } = pair;
  if (random.below(3) === 0) {
    pair.note(`the next flush of a disk of ${name} fails`);
    random.oneOf(host.diskFaults).flushes.set(1, "EIO");
    return;
  }
  const errno = random.oneOf(["EIO", "ENOSPC"] as const);
  const count = random.oneOf([1, 1, 2, 5, 50]);
  const pattern = random.oneOf(STATE_PATTERNS);
  pair.note(
    `the state directory of ${name} fails ${count} times: ${errno}, ${pattern?.source ?? "anything"}`,
  );
  host.stateFaults.set(count, errno, pattern);
}

/** Starts a node in its role, as often as it takes; the other one may be anything. */
async function start(
  pair: SimulatedPair,
  host: ModelledHost,
  comeBack: ComeBack | null = null,
): Promise<void> {
  // A node that was promoted may go on in either way.
  if (host === pair.active && !host.isCommitting && pair.random.below(3) === 0) host.role = "primary";
  for (let attempt = 0; attempt < 20; attempt++) {
    await host.host.dead();
    if (host.host.life !== null) return;
    // A node that finds its storage broken refuses to start, until somebody mends it.
    host.host.mend();
    const isUp =
      host.role === "primary" ? await host.host.startPrimary() : await host.host.startSecondary(comeBack);
    pair.note(
      `${host.name} starts as a ${host.role}${comeBack === null ? "" : `, ${comeBack}`}: ${isUp ? "up" : "dead"}`,
    );
    if (!isUp) continue;
    await recovered(pair, host);
    return;
  }
  throw new Error(`${host.name} does not come up`);
}

/** What a restart brought back is what it has to be. */
async function recovered(pair: SimulatedPair, host: ModelledHost): Promise<void> {
  const { secondary } = host.host;
  if (secondary === null || host === pair.active) return;
  const { stage, epoch } = secondary;
  // It ended while it renamed the maps of its disks: nobody can tell whether one of them is from a backup.
  const { returning, tenure } = secondary.metadata;
  const hasMaps = (await host.host.state.list()).includes("dirty-1.map");
  if (returning && tenure === null && hasMaps) host.isGivenUp = true;
  if (stage !== "running") return;
  host.isCommitting = false;
  pair.note(`${host.name} is back in epoch ${epoch}`);
  for (const [number, content] of host.epochs) {
    // The last one that was reported, or a newer one.
    if (pair.reported?.content === content && number > epoch)
      pair.fail(`checkpoint ${number} was reported, and ${host.name} is back in epoch ${epoch}`);
    if (number > epoch) host.epochs.delete(number);
  }
  for (const number of host.views.keys()) if (number !== epoch) host.views.delete(number);
  for (const { run, values } of host.viewWrites) host.view(epoch).issue(run, values);
  host.viewWrites.clear();
  await pair.verifyView(host);
}

async function attach(pair: SimulatedPair): Promise<void> {
  const { active } = pair;
  const { primary } = active.host;
  if (primary === null || primary.link !== null) return;
  const attached = primary.attach({ address: ADDRESS, control: ADDRESS, uri: "simulated" });
  const error = await alive(
    active,
    attached.then(
      () => null,
      (reason: unknown) => asError(reason),
    ),
  );
  if (error === null) return;
  pair.note(`attach refused: ${error.message}`);
}

async function failover(pair: SimulatedPair): Promise<void> {
  const { active: old, random } = pair;
  const next = pair.other(old);
  if (stageOf(next) !== "running" || next.host.failure !== null) return;
  if (random.below(3) === 0) pair.link.set(random.oneOf(["cut", "stalled", "lost"]));
  if (random.below(3) === 0) await old.host.die(random.oneOf(["killed", "power lost"]));
  const to = random.oneOf(["checkpoint", "latest"] as const);
  const { secondary } = next.host;
  if (secondary === null) return;
  pair.note(`failover of ${next.name} to the ${to} of epoch ${secondary.epoch}`);
  next.isCommitting = true;
  const refused = await alive(
    next,
    secondary.stop(to).then(
      () => "done",
      (error: unknown) => describeError(error),
    ),
  );
  if (refused === null) await start(pair, next);
  else if (refused !== "done" && next.host.life !== null) {
    pair.note(refused);
    next.isCommitting = false;
    return;
  }
  await begun(pair, next, () => random.oneOf(["checkpoint", "latest"]));
  // It was not on record yet when the node ended, or was started anew.
  if (stageOf(next) === "running") return;
  await promoted(pair, old, next, next.host.secondary?.metadata.failoverTarget ?? to);
}

/**
 * A failover whose state directory, or log of before-images, failed at its beginning may be on record or not, which shows when the
 * node is up: it is tried again.
 * @param target of one that has changed nothing
 */
async function begun(pair: SimulatedPair, host: ModelledHost, target: () => FailoverTarget): Promise<void> {
  for (;;) {
    if (host.host.life === null) await start(pair, host);
    const { secondary } = host.host;
    if (secondary === null || !pair.hasFaults || secondary.commit !== null) return;
    const ended = secondary.commitEnded().then(() => true);
    if ((await alive(host, ended)) === null) continue;
    if (secondary.stage !== "failover-failed") return;
    await retryFailover(pair, host, target());
  }
}

/** Guests go to the new primary; the old one becomes its secondary, sooner or later. */
async function promoted(
  pair: SimulatedPair,
  old: ModelledHost,
  next: ModelledHost,
  to: "checkpoint" | "latest",
): Promise<void> {
  const { random } = pair;
  pair.counts.failovers++;
  next.host.mend();
  for (;;) {
    const taken = await pair.takePromotion(next, to);
    if (taken === "taken") break;
    if (taken === "lost") await renewLog(pair, next);
    else await start(pair, next);
  }
  pair.active = next;
  pair.reported = null;
  old.isReplaced = true;
  old.mustRefuse = pair.hasOwn(old);
  next.alone.clear();
  // The answer that told the old primary the newer name may have been lost: the new one's maps go by that all the same.
  const names = next.host.secondary?.metadata;
  if (names?.tenure !== names?.offeredTenure) old.isGivenUp = true;
  if (random.below(2) === 0) await guests(pair, next);
  if (random.below(3) === 0) {
    pair.note(`strays at ${old.name}`);
    await guests(pair, old);
    await pair.time.sleep(random.below(1000));
  }
  if (random.below(2) === 0) await finishCommit(pair, next);
  await replace(pair, old);
}

/** The old primary's node is a secondary from now on. */
async function replace(pair: SimulatedPair, old: ModelledHost): Promise<void> {
  old.guestErrorsAllowed = true;
  if (pair.random.below(2) === 0) await old.host.die(pair.random.oneOf(["killed", "power lost"]));
  else {
    // Guests of a node that is stopped are disconnected first.
    await pair.quiet();
    if (await stop(pair, old)) settleStopped(pair, old);
  }
  await old.host.dead();
  old.role = "secondary";
  await start(pair, old);
  await finishCommit(pair, old);
  if (old.host.secondary?.stage === "done") {
    // It was promoted itself once, and would stay what it is.
    if (await stop(pair, old)) settleStopped(pair, old);
    await old.host.dead();
    await start(pair, old, "demote");
  }
  old.guestErrorsAllowed = false;
}

/** The operator gives up what only this node has. */
async function discard(pair: SimulatedPair, host: ModelledHost): Promise<void> {
  await host.host.dead();
  host.mustRefuse = false;
  host.isGivenUp = true;
  host.alone.clear();
  await start(pair, host, "discard");
}

async function finishCommit(pair: SimulatedPair, host: ModelledHost): Promise<void> {
  while (host.isCommitting) {
    const { secondary } = host.host;
    if (secondary === null) {
      await start(pair, host);
      continue;
    }
    if (
      (await alive(
        host,
        secondary.commitEnded().then(() => true),
      )) === null
    )
      continue;
    if (secondary.stage === "failover-failed" && (host.hasDiskFailed || host.hasLostTrack)) {
      await retryFailover(pair, host);
      continue;
    }
    if (secondary.stage !== "done") {
      if (secondary.stage === "running") return;
      pair.fail(`the failover of ${host.name} ended in stage ${secondary.stage}`);
    }
    host.isCommitting = false;
    pair.checkMedia(host);
  }
}

/** Its disk failed in the merge: mended, the failover is begun again. */
async function retryFailover(
  pair: SimulatedPair,
  host: ModelledHost,
  target: FailoverTarget | null = null,
): Promise<void> {
  if (host.host.hasFlushFailed) await renewLog(pair, host);
  const { secondary } = host.host;
  if (secondary?.stage !== "failover-failed") return;
  const to = secondary.metadata.failoverTarget ?? target;
  pair.note(`${host.name} tries its failover again, to the ${to ?? "stage none"}`);
  host.host.mend();
  const again = secondary.stop(to).then(
    () => "begun" as const,
    (error: unknown) => {
      if (error instanceof StateError && error.code === "checkpoint-lost") return "lost" as const;
      throw error;
    },
  );
  // What the view's clients had flushed is read from its log by the node's next life alone.
  if ((await alive(host, again)) === "lost") await renewLog(pair, host);
}

async function switchOver(pair: SimulatedPair): Promise<void> {
  const { active: old } = pair;
  const next = pair.other(old);
  const { primary } = old.host;
  if (primary === null || old.isCommitting || next.host.secondary?.stage !== "running") return;
  await finishCommit(pair, old);
  pair.note(`switch-over from ${old.name} to ${next.name}`);
  old.guestErrorsAllowed = true;
  next.isCommitting = true;
  const result = await alive(
    old,
    primary.switchOver().then(
      () => "done",
      (error: unknown) => (error instanceof ReplError ? error.code : String(error)),
    ),
  );
  pair.note(`switch-over: ${result ?? "the old primary died"}`);
  let isWhole = true;
  if (result === "done" || result === "undecided" || result === null) {
    // The node ends when it has handed over, or may have. It can't make everything durable if a flush failed.
    isWhole = await stop(pair, old);
  }
  await old.host.dead();
  if (result === null) {
    // What it had asked for may be on its way to the other node, or being done there.
    healLink(pair);
    await pair.time.sleep(ON_ITS_WAY_MS);
  }
  await begun(pair, next, () => "latest");
  if (stageOf(next) === "running") {
    if (result === "done") pair.fail("the switch-over was done, and the other node knows nothing of it");
    next.isCommitting = false;
    await start(pair, old);
    old.guestErrorsAllowed = false;
    return;
  }
  if (result === "done") {
    pair.counts.switchOvers++;
  }
  if (result === "done" && isWhole) {
    const [before, after] = [mediaContent(old), mediaContent(next)];
    for (const [key, value] of before) {
      if (after.get(key) !== value)
        pair.fail(`the switch-over lost a write: ${value}, now ${after.get(key) ?? -1}`);
    }
    settleStopped(pair, old);
  }
  await promoted(pair, old, next, "latest");
}

/** All faults are mended, and the pair comes to rest: both disks are the same, and what they must be. */
async function settle(pair: SimulatedPair, isLast = false): Promise<void> {
  pair.note("settle");
  healLink(pair);
  for (const { host } of pair.hosts) host.mend();
  for (let round = 0; round < 12; round++) {
    const { active } = pair;
    const other = pair.other(active);
    await revive(pair);
    await finishCommit(pair, active);
    const { primary } = active.host;
    if (primary === null) continue;
    if (await renewAfterFailedFlush(pair)) continue;
    await attach(pair);
    await discardIfRefused(pair, active, other);
    if (!(await synchronised(pair, active))) {
      if (other.hasFailed) await renewLog(pair, other);
      continue;
    }
    await pair.quiet();
    if (pair.policies.onReplicaError === "stop") {
      // The replica may die meanwhile, and the flush then waits for it to be back.
      pair.beside(() => pair.flushAll());
      await pair.quiet();
    } else await alive(active, pair.flushAll());
    const epoch = await alive(
      active,
      primary.checkpoint().catch(() => null),
    );
    if (epoch === null) {
      // What it acknowledged and lost, the primary hears of at the next flush, which comes once a second.
      if (pair.hasFaults) await pair.time.sleep(1500);
      if (other.hasFailed && round > 2) await renewLog(pair, other);
      continue;
    }
    const { secondary } = other.host;
    if (secondary === null) continue;
    await alive(other, secondary.checkpointDurable());
    for (const { copyBeforeWrite } of secondary.disks) await alive(other, copyBeforeWrite.drain());
    if (active.host.life === null || other.host.life === null) continue;
    if (primary.checkpointRefusal() !== null) continue;
    pair.verifyDisks(isLast);
    await pair.verifyView(other);
    return;
  }
  const { primary } = pair.active.host;
  const link = primary?.link;
  throw new Error(
    `the pair does not come to rest: link ${link?.state ?? "none"}, ${link?.lastError?.message ?? ""}, ${primary?.checkpointRefusal() ?? ""}`,
  );
}

/** A log that failed takes nothing more in this life: where writes are refused for that, the operator starts the node anew. */
async function renewLog(pair: SimulatedPair, host: ModelledHost): Promise<void> {
  pair.note(`${host.name} is started anew`);
  if (await stop(pair, host)) settleStopped(pair, host);
  await start(pair, host);
}

/**
 * A disk whose flush failed fails each flush until its node is started anew; of a view that is on its way to be the disk a flush may fail by
 * itself, and the node asks for that. @returns whether there was one
 */
async function renewAfterFailedFlush(pair: SimulatedPair): Promise<boolean> {
  const asks = ({ host }: ModelledHost): boolean =>
    host.primary?.brokenPromise()?.endsWith("or start this node anew") === true;
  const failed = pair.hosts.filter((host) => host.host.hasFlushFailed || asks(host));
  for (const host of failed) {
    await pair.quiet();
    await renewLog(pair, host);
  }
  return failed.length > 0;
}

async function synchronised(pair: SimulatedPair, active: ModelledHost): Promise<boolean> {
  const { primary } = active.host;
  for (let waited = 0; waited < 400; waited++) {
    if (active.host.primary !== primary || pair.other(active).host.life === null) return false;
    if (primary?.checkpointRefusal() === null) return true;
    const isGivenUp = pair.other(active).host.secondary?.metadata.discard === true;
    if (primary?.link?.state === "refused" && !isGivenUp) {
      // Not for ever, if it was for storage that is mended now, or the replica was started anew between its answer and its exports.
      await pair.time.sleep(1000);
      return false;
    }
    await pair.time.sleep(50);
  }
  return false;
}

/** Two histories: the operator gives up the one of the node that was replaced. */
async function discardIfRefused(
  pair: SimulatedPair,
  active: ModelledHost,
  other: ModelledHost,
): Promise<void> {
  const { primary } = active.host;
  if (primary === null) return;
  const { secondary } = other.host;
  const conflict = secondary?.conflict ?? null;
  const isConflict = conflict !== null || HISTORIES.has(codeOf(primary.link?.lastError));
  // Given up already: the primary will see at its next attempt.
  if (!isConflict || secondary?.metadata.discard === true) return;
  pair.counts.splitBrains++;
  pair.note(`histories differ: ${secondary?.conflict ?? primary.link?.lastError?.message ?? ""}`);
  if (await stop(pair, other)) settleStopped(pair, other);
  await discard(pair, other);
  await attach(pair);
}

/** Asked anew each time: much happens between two questions. */
function stageOf({ host }: ModelledHost): Stage | null {
  return host.secondary?.stage ?? null;
}

function codeOf(error: Error | null | undefined): string {
  return error instanceof ReplError ? error.code : "";
}

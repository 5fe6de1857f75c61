/** A crash of a secondary in the middle of requests and of an operation, and what it may leave. */
import { at, type Effect, expectOneOf, issue, type Load } from "./requests.js";
import type { SecondaryModel } from "./secondary-model.js";

export interface CrashStep extends Load {
  readonly kind: "crash";
  /** How many changes of disks and state files still happen. */
  readonly changes: number;
  /** Of the host, not only of the process: what was not flushed may be lost. */
  readonly losesPower: boolean;
  readonly during: "nothing" | "checkpoint" | "failover to checkpoint" | "failover to latest";
}

/** What was under way when the node crashed, disk by disk. */
interface UnderWay {
  readonly during: CrashStep["during"];
  readonly losesPower: boolean;
  readonly sent: readonly Effect[][];
  readonly viewed: readonly Effect[][];
  /** What the disks had durable before. */
  readonly durable: readonly Buffer[];
  readonly epoch: number;
  /** Whether the next epoch was announced as durable. */
  readonly isDurable: boolean;
}

export async function crash(model: SecondaryModel, step: CrashStep): Promise<void> {
  const { changes, during, losesPower } = step;
  const { node } = model;
  const primary = model.isDone ? [] : step.primary;
  const sent = model.effects(primary);
  const view = during.startsWith("failover") && !model.isDone ? model.besidePromotion(step.view) : step.view;
  const viewed = model.effects(view);
  const durable = model.media.map((medium) => medium.durableContents());
  const { epoch } = node.secondary;
  const half = Math.ceil(primary.length / 2);
  const operation = { isAnswered: false };
  node.power.failAfter(changes);
  const answered = begin(model, during).then(() => {
    operation.isAnswered = true;
  });
  const requests = [
    model.send(primary.slice(0, half)),
    ...view.map((request) => issue(model.node.view(request.disk), request)),
    // Into the new epoch, before that is durable.
    answered.then(() => model.send(primary.slice(half))),
  ];
  await Promise.race([node.power.failed, Promise.allSettled(requests)]);
  const wasPromoted = operation.isAnswered && !model.isDone && during.startsWith("failover");
  const isDurable = node.durableEpochs.includes(epoch + 1);
  await node.crash();
  if (losesPower) {
    model.state.crash(() => model.random.below(2) === 0, model.random.oneOf([512, 4096]));
    for (const medium of model.media) medium.losePower(model.random);
  }
  await node.reopen();
  model.jitter();
  const underWay = { during, losesPower, sent, viewed, durable, epoch, isDurable };
  if (node.secondary.stage !== "running") await takePromotion(model, underWay);
  else if (wasPromoted) throw new Error("a failover that was answered is undone");
  else await takeEpoch(model, underWay);
}

async function begin({ node, isDone, hasGap }: SecondaryModel, during: CrashStep["during"]): Promise<void> {
  const { secondary } = node;
  if (isDone) return;
  switch (during) {
    case "nothing":
      return;
    case "checkpoint":
      if (!hasGap) await secondary.checkpoint({ session: null, epoch: null });
      return;
    case "failover to checkpoint":
      return node.failover("checkpoint");
    case "failover to latest":
      return node.failover("latest");
  }
}

/** The node is in the epoch it was in, or in the one that was begun: never anything between. */
async function takeEpoch(model: SecondaryModel, underWay: UnderWay): Promise<void> {
  const { losesPower, sent, viewed, durable, epoch: oldEpoch, isDurable } = underWay;
  const { epoch } = model.node.secondary;
  const isOld = epoch === oldEpoch;
  if (isDurable && isOld) throw new Error(`epoch ${oldEpoch + 1} was announced and is lost`);
  for (const [index, medium] of model.media.entries()) {
    const beside = at(viewed, index);
    const actual = await model.readView(index);
    const what = `view ${index} after the crash, in epoch ${epoch}, was ${oldEpoch}`;
    if (isOld) {
      const effects = [...at(model.viewSince, index), ...beside];
      expectOneOf(actual, 0, [at(model.viewFlushed, index)], effects, what);
    } else {
      expectOneOf(actual, 0, [at(model.disk, index)], [...at(sent, index), ...beside], what);
    }
    model.view[index] = actual;
    model.takeDisk(index, medium.contents(), at(durable, index), at(sent, index));
  }
  model.hasGap = true;
  if (!isOld) await model.flushView();
  else if (losesPower) model.forgetView(model.view);
  // What the dead process left in the page cache is seen, and not durable before the next flush.
  else for (const [index, effects] of viewed.entries()) at(model.viewSince, index).push(...effects);
}

/** The node finishes the failover that it had begun, or is promoted already. */
async function takePromotion(model: SecondaryModel, underWay: UnderWay): Promise<void> {
  const { during, sent, viewed, durable } = underWay;
  await model.node.secondary.commitEnded();
  for (const index of model.media.keys()) {
    const beside = at(viewed, index);
    const actual = await model.readView(index);
    const what = `view ${index} after the crash and the promotion`;
    if (model.isDone) expectOneOf(actual, 0, [at(model.view, index), at(durable, index)], beside, what);
    else if (during === "failover to latest") {
      const bases = [at(model.disk, index), at(durable, index)];
      expectOneOf(actual, 0, bases, [...at(sent, index), ...beside], what);
    } else {
      const effects = [...at(model.viewSince, index), ...beside];
      expectOneOf(actual, 0, [at(model.viewFlushed, index)], effects, what);
    }
    model.view[index] = actual;
  }
  model.becomeDone();
}

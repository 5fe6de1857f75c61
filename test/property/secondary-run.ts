/**
 * Random histories of a secondary, step by step beside its model.
 *
 * Within a step requests run at once; where their order is open, each byte must be as one of them left it.
 */
import { randomUUID } from "node:crypto";

import type { FailoverTarget } from "../../src/replication/stage.js";
import type { FailingDevice } from "../tools/failing-device.js";
import { failureOf } from "../tools/outcome.js";
import { apply, at, disjoint, issue, type Load, type Request } from "./requests.js";
import { crash, type CrashStep } from "./secondary-crash.js";
import { copies, SecondaryModel } from "./secondary-model.js";

/** Of the primary's line of history. */
const GENERATION = "2f1c9a60-53a1-4f0e-8a44-9a6f53f8b0aa";

interface FailoverStep {
  readonly kind: "failover";
  readonly to: FailoverTarget;
  /** The commit fails once and is tried again. */
  readonly fails: boolean;
  readonly view: readonly Request[];
}

export type Step =
  | (Load & { readonly kind: "batch"; readonly flush: boolean })
  | (Load & { readonly kind: "checkpoint" })
  | { readonly kind: "restart" }
  | { readonly kind: "stop and start" }
  | CrashStep
  | FailoverStep;

/** Runs steps on a new node that has been started. @throws Error at the first byte that is wrong */
export async function runSecondary(
  sizes: readonly number[],
  steps: readonly Step[],
  seed: number,
): Promise<void> {
  const model = await SecondaryModel.start(sizes, seed);
  try {
    await model.verify();
    for (const [index, step] of steps.entries()) {
      try {
        await perform(model, step);
        await model.verify();
      } catch (error) {
        throw new Error(`step ${index}, ${step.kind}: ${String(error)}`, { cause: error });
      }
    }
  } finally {
    await model.node.dispose();
  }
}

function perform(model: SecondaryModel, step: Step): Promise<void> {
  switch (step.kind) {
    case "batch":
      return batch(model, step, step.flush);
    case "checkpoint":
      return checkpoint(model, step);
    case "restart":
      return restart(model);
    case "stop and start":
      return stopAndStart(model);
    case "crash":
      return crash(model, step);
    case "failover":
      return failover(model, step);
  }
}

async function batch(model: SecondaryModel, load: Load, isFlushed: boolean): Promise<void> {
  const primary = model.isDone ? [] : load.primary;
  const sent = model.effects(primary);
  const viewed = model.effects(load.view);
  await Promise.all([
    ...primary.map((request) =>
      model.request(model.node.replication(request.disk), request, model.disk, sent),
    ),
    ...load.view.map((request) => model.request(model.node.view(request.disk), request, model.view, viewed)),
  ]);
  for (const [index, effects] of sent.entries()) {
    // In order of arrival, whatever overtakes what on the way to the disk.
    apply(at(model.disk, index), effects);
    apply(at(model.truth, index), effects);
  }
  for (const [index, effects] of viewed.entries())
    await model.takeView(index, at(model.view, index), effects);
  if (isFlushed) await model.flushView();
}

async function checkpoint(model: SecondaryModel, load: Load): Promise<void> {
  if (model.isDone) return batch(model, load, false);
  if (model.hasGap) return resync(model);
  const primary = disjoint(load.primary);
  const view = disjoint(load.view);
  const session = model.isReserved ? await introduce(model) : null;
  // Acknowledged before it, beside it, and after it has been reported.
  const [early, beside, late] = thirds(primary);
  await model.send(early);
  for (const [index, effects] of model.effects(early).entries()) apply(at(model.disk, index), effects);
  await Promise.all([
    model.send(beside),
    ...view.map((request) => issue(model.node.view(request.disk), request)),
    model.node.secondary.checkpoint({ session, epoch: null }).then(() => model.send(late)),
  ]);
  await model.node.secondary.checkpointDurable();
  const sent = model.effects(beside);
  const viewed = model.effects(view);
  const after = model.effects(late);
  for (const index of model.media.keys()) {
    await model.takeInstant(index, at(sent, index), at(viewed, index), "checkpoint");
    apply(at(model.disk, index), [...at(sent, index), ...at(after, index)]);
    at(model.disk, index).copy(at(model.truth, index));
  }
}

/** After a crash: no checkpoint before the primary has sent everything once more. */
async function resync(model: SecondaryModel): Promise<void> {
  const { secondary } = model.node;
  const { message } = await failureOf(model.node.checkpoint());
  if (!message.startsWith("checkpoint refused: ")) throw new Error(`refused, but with ${message}`);
  const session = await introduce(model);
  model.isReserved = true;
  for (const [index, content] of model.truth.entries())
    await model.node.replication(index).write(0, content, 0);
  await secondary.checkpoint({ session, epoch: null });
  await secondary.checkpointDurable();
  model.hasGap = false;
  model.disk = copies(model.truth);
  model.forgetView(model.disk);
}

/** @returns the session of a primary */
async function introduce({ node }: SecondaryModel): Promise<string> {
  const session = randomUUID();
  await node.secondary.introduce({
    ...{ primary: "the primary", session, generation: GENERATION, ancestors: [], tenures: [] },
    epoch: 0,
    dirty: { bytes: 0, first: [] },
  });
  return session;
}

async function restart(model: SecondaryModel): Promise<void> {
  await model.node.restart();
  model.jitter();
  model.forgetView(model.view);
}

async function stopAndStart(model: SecondaryModel): Promise<void> {
  if (model.isDone) return;
  await model.node.secondary.stop(null);
  await model.node.start();
  model.hasGap = false;
  model.isReserved = false;
  model.truth = copies(model.disk);
  model.forgetView(model.disk);
}

async function failover(model: SecondaryModel, step: FailoverStep): Promise<void> {
  const { to, fails } = step;
  if (model.isDone) return batch(model, { primary: [], view: step.view }, false);
  const view = model.besidePromotion(step.view);
  if (to === "latest") {
    const disjointed = disjoint(view);
    const viewed = model.effects(disjointed);
    await Promise.all([
      ...disjointed.map((request) => issue(model.node.view(request.disk), request)),
      model.node.failover(to),
    ]);
    for (const [index, effects] of viewed.entries()) await model.takeInstant(index, [], effects, "failover");
  } else if (fails) {
    const rules = model.node.disks.map((disk) => failOnce(disk));
    await model.node.failover(to);
    for (const rule of rules) rule();
    await model.verifyViews();
    await batch(model, { primary: [], view }, true);
    await model.verifyViews();
    await model.node.failover(to);
  } else {
    await commitBeside(model, view);
  }
  model.becomeDone();
}

/** Requests before the views' change, and while the commit runs. */
async function commitBeside(model: SecondaryModel, view: readonly Request[]): Promise<void> {
  const effects = model.effects(view);
  const send = (requests: readonly Request[]): Promise<unknown> =>
    Promise.all(
      requests.map((request) => model.request(model.node.view(request.disk), request, model.view, effects)),
    );
  const half = Math.ceil(view.length / 2);
  await Promise.all([
    send(view.slice(0, half)),
    model.node.secondary.stop("checkpoint").then(() => send(view.slice(half))),
  ]);
  await model.node.secondary.commitEnded();
  for (const [index, changes] of effects.entries()) {
    await model.takeView(index, at(model.view, index), changes);
  }
}

function thirds<T>(items: readonly T[]): [T[], T[], T[]] {
  const third = Math.ceil(items.length / 3);
  return [items.slice(0, third), items.slice(third, 2 * third), items.slice(2 * third)];
}

/** @returns how to end it */
function failOnce(disk: FailingDevice): () => void {
  disk.clear();
  const rule = disk.fail({ operation: ["write", "zero"], count: 1 });
  return () => {
    rule.remove();
  };
}

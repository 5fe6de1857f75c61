/** The verb that can destroy data: shows what would be lost, and asks, or wants --yes. */
import { FAILOVER_TARGETS } from "../status.js";
import type { FailoverPlan, FailoverTarget } from "../status.js";
import { choiceField, readField } from "../config/fields.js";
import { StateError } from "../errors.js";
import type { QmpClient } from "../qmp/client.js";
import { confirm, requireTerminal } from "./confirm.js";
import type { Verb, VerbContext } from "./program.js";
import { renderFailoverPlan } from "./render.js";
import { operate } from "./verbs.js";

export const failoverVerb: Verb = {
  name: "failover",
  describe: "promote this node: close it to the old primary and make its view the disk",
  options: {
    to: {
      type: "string",
      requiresArg: true,
      describe: "TARGET: checkpoint (roll back to the last one) or latest (keep all that was received)",
      defaultDescription: "checkpoint",
    },
    "dry-run": { type: "boolean", describe: "only tell what would be lost" },
    yes: { type: "boolean", describe: "don't ask; required where there is no terminal" },
  },
  run: async (context) => {
    const { args, terminal } = context;
    const to = readField(choiceField(FAILOVER_TARGETS), "--to", args.texts["to"] ?? "checkpoint");
    const dryRun = args.flags.has("dry-run");
    if (!dryRun && !args.flags.has("yes")) requireTerminal(terminal, "failover can lose data");
    await context.withNode((client) => (dryRun ? show(context, client, to) : failOver(context, client, to)));
  },
};

async function show({ terminal }: VerbContext, client: QmpClient, to: FailoverTarget): Promise<void> {
  terminal.print(renderFailoverPlan(await request(client, to, true)));
}

async function failOver(
  { args, terminal }: VerbContext,
  client: QmpClient,
  to: FailoverTarget,
): Promise<void> {
  if (!args.flags.has("yes")) {
    const plan = await request(client, to, true);
    terminal.print(renderFailoverPlan(plan));
    if (!plan.possible)
      throw new StateError("not-possible", `failover to ${to}: ${plan.reason ?? "not possible now"}`);
    await confirm(terminal, "failover can lose data", `Fail over to ${to}?`);
  }
  terminal.print(renderFailoverPlan(await request(client, to, false)));
}

/** The plan's shape is src/status.ts on both sides. */
async function request(client: QmpClient, to: FailoverTarget, dryRun: boolean): Promise<FailoverPlan> {
  return (await operate(client, "x-repl-failover", { to, "dry-run": dryRun })) as FailoverPlan;
}

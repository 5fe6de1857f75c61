/** The verbs that both programs have, and the primary's; failover has a file of its own. */
import { setTimeout as sleep } from "node:timers/promises";
import { addressField, durationField, rateField, readField, replicaField } from "../config/fields.js";
import { ConfigError, LinkError, ReplError } from "../errors.js";
import type { QmpClient } from "../qmp/client.js";
import { ENDED_EVENT } from "../qmp/commands/node.js";
import type { NodeStatus } from "../status.js";
import type { Verb } from "./program.js";
import { renderMetrics } from "./metrics.js";
import { renderStatus, renderVerify } from "./render.js";

/** Ample for draining what is in flight over a slow link; then the outcome is unknown, and `status` tells. */
const OPERATION_TIMEOUT_MS = 120_000;

const WATCH_INTERVAL_MS = 1000;
const VERIFY_POLL_MS = 200;

export const checkpointVerb: Verb = {
  name: "checkpoint",
  describe: "make a checkpoint of all disks now",
  options: {},
  run: ({ terminal, withNode }) =>
    withNode(async (client) => {
      const answer = await operate(client, "x-repl-checkpoint");
      terminal.print(`checkpoint done, epoch ${(answer as { epoch: number }).epoch} begins`);
    }),
};

export const statusVerb: Verb = {
  name: "status",
  describe: "show what the node does and how it fares",
  options: {
    json: { type: "boolean", describe: "as JSON, one line each time" },
    watch: { type: "boolean", describe: "again every second, until the node ends" },
  },
  run: ({ args, terminal, withNode }) =>
    withNode(async (client) => {
      const watch = args.flags.has("watch");
      const json = args.flags.has("json");
      for (;;) {
        const status = await queryStatus(client);
        if (watch && !json && terminal.decorated) terminal.clear();
        terminal.print(json ? JSON.stringify(status) : renderStatus(status, Date.now(), terminal.decorated));
        if (!watch) return;
        await sleep(WATCH_INTERVAL_MS);
      }
    }),
};

export const metricsVerb: Verb = {
  name: "metrics",
  describe: "print the node's figures for Prometheus, in its text format",
  options: {},
  run: ({ terminal, withNode }) =>
    withNode(async (client) => {
      terminal.print(renderMetrics(await queryStatus(client)));
    }),
};

export const stopVerb: Verb = {
  name: "stop",
  describe: "finish what is in flight, flush, and end the node",
  options: {},
  run: ({ terminal, withNode }) =>
    withNode(async (client) => {
      const ends = client.waitForEvent(ENDED_EVENT, { timeoutMs: OPERATION_TIMEOUT_MS }).catch(() => null);
      await client.execute("quit");
      const timer = new AbortController();
      const late = sleep(OPERATION_TIMEOUT_MS, "late" as const, { signal: timer.signal });
      const outcome = await Promise.race([client.ended, late]);
      timer.abort();
      if (outcome === "late") {
        throw new LinkError("timeout", `the node has not ended within ${OPERATION_TIMEOUT_MS / 1000} s`);
      }
      const word = await ends;
      if (word === null)
        throw new ReplError("no-word", "the node ended without a word: its log may tell why");
      const { reason } = word.data as { readonly reason: string | null };
      if (reason !== null) throw new ReplError("ended-badly", `the node ended with exit code 1: ${reason}`);
      terminal.print("stopped");
    }),
};

export const attachVerb: Verb = {
  name: "attach",
  describe: "begin to replicate to a secondary",
  options: {
    replica: { type: "string", requiresArg: true, describe: "URI: the secondary's NBD server (required)" },
    "replica-qmp": { type: "string", requiresArg: true, describe: "ADDR: the secondary's QMP server" },
    "checkpoint-interval": {
      type: "string",
      requiresArg: true,
      describe: "TIME: between periodic checkpoints, as long as it is attached; 0: on demand only",
      defaultDescription: "as the node's",
    },
  },
  run: async ({ args, terminal, withNode }) => {
    const { replica, "replica-qmp": replicaQmp, "checkpoint-interval": interval } = args.texts;
    if (replica === undefined)
      throw new ConfigError("usage", "--replica: is missing, as in nbd://HOST:10809");
    readField(replicaField, "--replica", replica);
    if (replicaQmp !== undefined) readField(addressField, "--replica-qmp", replicaQmp);
    if (interval !== undefined) readField(durationField, "--checkpoint-interval", interval);
    const options = {
      ...(replicaQmp !== undefined && { "replica-qmp": replicaQmp }),
      ...(interval !== undefined && { "checkpoint-interval": interval }),
    };
    const { primary } = await withNode(async (client) => {
      await operate(client, "x-repl-attach", { replica, ...options });
      return queryStatus(client);
    });
    // One that refuses is an error; one that can't be reached is attached, and whoever mistyped it has to see that.
    const reason = primary?.link.lastError ?? null;
    const trouble = reason === null ? "" : `, which is tried again until it can be used: ${reason}`;
    terminal.print(`attached to ${replica}${trouble}`);
  },
};

export const verifyVerb: Verb = {
  name: "verify",
  describe: "compare the replica with the disks, by digests, while guests go on; exit code 1 if they differ",
  options: {
    disk: { type: "string", requiresArg: true, describe: "NAME: this disk only" },
    repair: { type: "boolean", describe: "send the replica again what differs" },
    rate: {
      type: "string",
      requiresArg: true,
      describe: "RATE: limit of the reading on each node, a second",
      defaultDescription: "as --resync-rate",
    },
  },
  run: async ({ args, terminal, withNode }) => {
    const { disk, rate } = args.texts;
    const request = {
      ...(disk !== undefined && { disk }),
      ...(rate !== undefined && { speed: readField(rateField, "--rate", rate) }),
      repair: args.flags.has("repair"),
    };
    const isAsked = (name: string): boolean => disk === undefined || name === disk;
    const status = await withNode(async (client) => {
      await client.execute("x-repl-verify", request);
      for (;;) {
        const now = await queryStatus(client);
        if (!now.jobs.some((job) => job.type === "verify" && isAsked(job.disk))) return now;
        await sleep(VERIFY_POLL_MS);
      }
    });
    const bad: string[] = [];
    for (const { name, primary } of status.disks) {
      const report = primary?.lastVerify ?? null;
      if (report === null || !isAsked(name)) continue;
      terminal.print(`${name}: ${renderVerify(report)}`);
      for (const { offset, lengthBytes } of report.differences) terminal.print(`  ${offset}+${lengthBytes}`);
      if (!report.differencesAreAll) terminal.print("  ...");
      if (report.outcome !== "completed") bad.push(`the verify of ${name} was not finished`);
      else if (report.differingBytes > report.repairedBytes) bad.push(`the replica of ${name} differs`);
    }
    if (bad.length > 0) throw new ReplError("differs", bad.join("; "));
  },
};

export const detachVerb: Verb = {
  name: "detach",
  describe: "stop replicating and go on alone; what changes meanwhile is remembered",
  options: {},
  run: async ({ terminal, withNode }) => {
    await withNode((client) => client.execute("x-repl-detach", {}, { timeoutMs: OPERATION_TIMEOUT_MS }));
    terminal.print("detached");
  },
};

export const switchOverVerb: Verb = {
  name: "switch-over",
  describe: "hand the disks over to the secondary without losing a write, and end this node",
  options: {},
  run: async ({ terminal, withNode }) => {
    await withNode(async (client) => {
      const answer = await operate(client, "x-repl-switch-over");
      const { pauseMs } = answer as { pauseMs: number };
      terminal.print(
        `switched over: the secondary has the disks now, guests waited ${Math.ceil(pauseMs)} ms; to replicate back, start repl-secondary on this node's state directory and attach it there`,
      );
    });
  },
};

/**
 * Has the node do what may take long; its last word is the end of that, too.
 * @throws ReplError "ended" with the reason, if the node ends before it answers
 */
export async function operate(client: QmpClient, command: string, args: object = {}): Promise<unknown> {
  let stopListening = (): void => undefined;
  const ended = new Promise<never>((_resolve, reject) => {
    stopListening = client.onEvent(({ event, data }) => {
      if (event !== ENDED_EVENT) return;
      const { reason } = data as { readonly reason: string | null };
      const how = reason === null ? " before it answered" : ` with exit code 1 before it answered: ${reason}`;
      reject(new ReplError("ended", `the node ended${how}`));
    });
  });
  try {
    return await Promise.race([client.execute(command, args, { timeoutMs: OPERATION_TIMEOUT_MS }), ended]);
  } finally {
    stopListening();
  }
}

/** The node's status, whose shape is src/status.ts on both sides. */
async function queryStatus(client: QmpClient): Promise<NodeStatus> {
  return (await client.execute("x-repl-status")) as NodeStatus;
}

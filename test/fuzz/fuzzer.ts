/**
 * Runs all targets in turn for a given time. Each round has a seed of its own, made of the run's seed and its number,
 * so that a finding can be repeated alone.
 */
import { Random } from "../tools/seed.js";
import { Workspace } from "../tools/workspace.js";
import { deceivedClient, inProcessServer, primaryProcess } from "./live-targets.js";
import { clientParser, decoders, serverParser } from "./parser-targets.js";

export interface FuzzOptions {
  readonly seed: number;
  readonly seconds: number;
  /** This one alone; default all. */
  readonly target?: string;
  /** This round alone; default all that the time allows. */
  readonly round?: number;
}

export interface Finding {
  readonly target: string;
  readonly round: number;
  readonly error: unknown;
}

export interface FuzzReport {
  /** Of each target. */
  readonly rounds: ReadonlyMap<string, number>;
  /** The first one ends the run. */
  readonly finding: Finding | null;
}

/** Sockets and processes cost a thousand times as much as a parser's run. */
const PARSER_ROUNDS = 50;

/** Odd and large: neighbouring rounds get seeds far apart. */
const SEED_STRIDE = 0x9e37_79b1;

interface Target {
  readonly name: string;
  readonly rounds: number;
  readonly run: (random: Random) => Promise<void> | void;
}

/** @throws if a target can't be set up; what it does under attack is in the report */
export async function fuzz(options: FuzzOptions): Promise<FuzzReport> {
  const workspace = new Workspace();
  await workspace.open();
  const uncaught: unknown[] = [];
  const onUncaught = (error: unknown): void => {
    uncaught.push(error);
  };
  process.on("uncaughtException", onUncaught);
  try {
    const live = {
      "in-process-server": await inProcessServer(),
      "primary-process": await primaryProcess(workspace),
      "deceived-client": await deceivedClient(workspace),
    };
    const targets: Target[] = [
      { name: "server-parser", rounds: PARSER_ROUNDS, run: serverParser },
      { name: "client-parser", rounds: PARSER_ROUNDS, run: clientParser },
      { name: "decoders", rounds: PARSER_ROUNDS, run: decoders },
      ...Object.entries(live).map(([name, target]) => ({
        name,
        rounds: 1,
        run: (random: Random) => target.attack(random),
      })),
    ].filter(({ name }) => options.target === undefined || options.target === name);
    const report = await attackAll(targets, options, uncaught);
    if (report.finding !== null) return report;
    for (const [name, target] of Object.entries(live)) {
      try {
        await target.close();
      } catch (error) {
        return { ...report, finding: { target: name, round: -1, error } };
      }
    }
    return report;
  } finally {
    process.off("uncaughtException", onUncaught);
    await workspace.close();
  }
}

async function attackAll(
  targets: readonly Target[],
  { seed, seconds, round: only }: FuzzOptions,
  uncaught: readonly unknown[],
): Promise<FuzzReport> {
  const rounds = new Map(targets.map(({ name }) => [name, 0]));
  const deadlineMs = performance.now() + seconds * 1000;
  for (let turn = 0; turn === 0 || performance.now() < deadlineMs; turn++) {
    for (const { name, rounds: perTurn, run } of targets) {
      for (let i = 0; i < perTurn; i++) {
        const round = only ?? turn * perTurn + i;
        try {
          await run(new Random(seed + round * SEED_STRIDE));
          if (uncaught.length > 0) throw uncaught[0];
        } catch (error) {
          return { rounds, finding: { target: name, round, error } };
        }
        rounds.set(name, (rounds.get(name) ?? 0) + 1);
        if (only !== undefined) break;
      }
    }
    if (only !== undefined) break;
  }
  return { rounds, finding: null };
}

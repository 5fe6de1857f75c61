/**
 * How long the random tests run, and how to run one of them again: SEED and, as fast-check prints it with a
 * counterexample, REPL_PROPERTY_PATH. REPL_PROPERTY_RUNS runs for longer.
 */
import process from "node:process";

import type fc from "fast-check";

import { SEED } from "../tools/seed.js";

/** The whole of one property; a run takes milliseconds. */
export const PROPERTY_TIMEOUT_MS = 60 * 60 * 1000;

/** @param defaultRuns what takes some ten seconds */
export function propertyOptions<T>(defaultRuns: number): fc.Parameters<T> {
  const path = process.env["REPL_PROPERTY_PATH"];
  const runs = Number(process.env["REPL_PROPERTY_RUNS"] ?? defaultRuns);
  return { seed: SEED, numRuns: runs, ...(path !== undefined && { path }) };
}

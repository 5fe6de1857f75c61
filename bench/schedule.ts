/**
 * Every row on every system, side by side: the systems take turns within a row, and each round begins with another
 * one, so that what else happens on the machine meets them alike.
 *
 * A system with data on its disk serves all rows on data; a row on holes gets one of its own, with new disks. What has
 * died is started anew for the next row.
 */
import type { Lab } from "./lab.js";
import { firstLine, measure } from "./measure.js";
import { runLoad } from "./load.js";
import { FILL, type Row } from "./rows.js";
import type { BenchSettings, Outcome, Sample } from "./sample.js";
import { startWarm, WARM_UP_BYTES } from "./warm-up.js";
import type { Shape, System, SystemName } from "./systems/system.js";

const FILL_LIMIT_SECONDS = 60;

export type Report = (sample: Sample) => void;

export class Schedule {
  readonly #lab: Lab;
  readonly #settings: BenchSettings;
  readonly #profileDirectory: string | null;
  readonly #report: Report;
  /** Those with data, kept from row to row. */
  readonly #kept = new Map<SystemName, System>();

  constructor(lab: Lab, settings: BenchSettings, profileDirectory: string | null, report: Report) {
    this.#lab = lab;
    this.#settings = settings;
    this.#profileDirectory = profileDirectory;
    this.#report = report;
  }

  async run(rows: readonly Row[]): Promise<Sample[]> {
    const samples: Sample[] = [];
    const { rounds, systems } = this.#settings;
    for (const row of rows) {
      for (let round = 0; round < rounds; round++) {
        const first = round % systems.length;
        for (const name of [...systems.slice(first), ...systems.slice(0, first)]) {
          const sample = {
            row: row.name,
            system: name,
            round,
            outcome: await this.#outcome(row, name, round),
          };
          this.#report(sample);
          samples.push(sample);
        }
      }
    }
    return samples;
  }

  async #outcome(row: Row, name: SystemName, round: number): Promise<Outcome> {
    const isKept = row.on === "data" && row.disks === undefined;
    let system = isKept ? this.#kept.get(name) : undefined;
    try {
      system ??= await this.#start(row, name);
    } catch (error) {
      return { kind: "failed", reason: `did not start: ${firstLine(error)}` };
    }
    const { seconds, sizeBytes, dataBytes } = this.#settings;
    const target = {
      disks: row.disks ?? 1,
      extentBytes: row.extentBytes ?? (row.on === "data" ? dataBytes : sizeBytes - WARM_UP_BYTES),
      seed: round + 1,
    };
    try {
      if (row.isFilledByGuest) await runLoad(system, FILL, { ...target, seconds: FILL_LIMIT_SECONDS });
    } catch (error) {
      await this.#lab.discard(system.workspace);
      return { kind: "failed", reason: `could not be filled: ${firstLine(error)}` };
    }
    const outcome = await measure(system, {
      ...target,
      job: row.job,
      seconds,
      ...(row.checkpointEveryMs !== undefined && { checkpointEveryMs: row.checkpointEveryMs }),
    });
    if (isKept && outcome.kind === "measured") this.#kept.set(name, system);
    else {
      this.#kept.delete(name);
      await this.#lab.discard(system.workspace);
    }
    return outcome;
  }

  async #start(row: Row, name: SystemName): Promise<System> {
    const { sizeBytes, dataBytes } = this.#settings;
    const shape: Shape = {
      disks: row.disks ?? 1,
      sizeBytes,
      dataBytes: row.on === "data" ? dataBytes : 0,
      ...(this.#profileDirectory !== null && { profileDirectory: this.#profileDirectory }),
    };
    const workspace = await this.#lab.workspace();
    try {
      return await startWarm(workspace, name, shape);
    } catch (error) {
      await this.#lab.discard(workspace);
      throw error;
    }
  }
}

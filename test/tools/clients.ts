/** The NBD clients that people use: QEMU's and fio, as functions. */
import { type Outcome, run, succeed, type TestProcess } from "./process.js";
import type { Workspace } from "./workspace.js";

/** Runs commands of qemu-io(1) on a raw disk, one after the other; what they print. @throws if one fails */
export async function qemuIo(uri: string, ...commands: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await tryQemuIo(uri, ...commands);
  if (code === 0 && !stdout.includes("failed")) return stdout;
  throw new Error(`qemu-io ${commands.join("; ")} on ${uri}: ${stderr}${stdout}`);
}

/** As qemuIo(), where failing may be right. */
export function tryQemuIo(uri: string, ...commands: readonly string[]): Promise<Outcome> {
  return run("qemu-io", ["-f", "raw", ...commands.flatMap((command) => ["-c", command]), uri]);
}

/** @throws if the disk holds anything else there; a pattern is one byte repeated, offsets as qemu-io takes them */
export async function expectPattern(
  uri: string,
  ...extents: readonly (readonly [pattern: number, offset: string, length: string])[]
): Promise<void> {
  await qemuIo(uri, ...extents.map(([pattern, offset, length]) => `read -P ${pattern} ${offset} ${length}`));
}

export async function writePattern(
  uri: string,
  pattern: number,
  offset: string,
  length: string,
): Promise<void> {
  await qemuIo(uri, `write -P ${pattern} ${offset} ${length}`);
}

/** fio(1)'s counters of one job. */
export interface FioResult {
  readonly error: number;
  readonly writes: number;
  readonly bytesWritten: number;
}

export type FioOptions = Readonly<Record<string, string | number>>;

/** Random writes that fio reads back and checks in the end, unless the options say otherwise. */
export function startFio(workspace: Workspace, uri: string, options: FioOptions): Promise<TestProcess> {
  const settings = {
    name: "load",
    ioengine: "nbd",
    uri,
    rw: "randwrite",
    bs: "4k",
    verify: "crc32c",
    verify_fatal: 1,
    verify_state_save: 0,
    ...options,
  };
  const args = Object.entries(settings).map(([name, value]) => `--${name}=${value}`);
  return workspace.start("fio", ["--output-format=json", ...args]);
}

/** The JSON that fio(1) reports when it has ended. @throws if fio, or what it checked, failed */
export async function fioReport(process: TestProcess, limitMs?: number): Promise<string> {
  const { code, stdout, stderr } = await process.ended(limitMs);
  // "fio: connected to NBD server" stands before it.
  const json = /^\{.*^\}/ms.exec(stdout)?.[0];
  if (code !== 0 || json === undefined)
    throw new Error(
      `fio ended with ${String(code)}: ${stderr}${stdout.slice(0, json === undefined ? Infinity : stdout.indexOf(json))}`,
    );
  return json;
}

/** @throws if fio, or what it checked, failed */
export async function fioResult(process: TestProcess): Promise<FioResult> {
  const json = await fioReport(process);
  const { jobs } = JSON.parse(json) as {
    jobs: { error: number; write: { total_ios: number; io_bytes: number } }[];
  };
  const [job] = jobs;
  if (job === undefined) throw new Error(`fio reported no job: ${json}`);
  return { error: job.error, writes: job.write.total_ios, bytesWritten: job.write.io_bytes };
}

export async function runFio(workspace: Workspace, uri: string, options: FioOptions): Promise<FioResult> {
  return fioResult(await startFio(workspace, uri, options));
}

/** A block of `qemu-img map --output=json`, offsets and lengths in bytes. */
export interface MappedExtent {
  readonly start: number;
  readonly length: number;
  readonly zero: boolean;
  readonly data: boolean;
}

export async function qemuImgMap(uri: string): Promise<MappedExtent[]> {
  const json = await succeed("qemu-img", ["map", "-f", "raw", "--output=json", uri]);
  return JSON.parse(json) as MappedExtent[];
}

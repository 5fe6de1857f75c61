/** What the benchmark ran on: figures of two machines compare as little as those of two versions of QEMU. */
import { cpus, release, totalmem } from "node:os";

import { run } from "../test/tools/process.js";
import type { Host } from "./sample.js";

const PROGRAMS = ["fio", "qemu-nbd", "qemu-system-x86_64", "nbdkit"];

export async function describeHost(): Promise<Host> {
  const versions = await Promise.all(
    PROGRAMS.map(async (program): Promise<[string, string]> => {
      const { stdout } = await run(program, ["--version"]);
      return [program, /\d+(\.\d+)+/.exec(stdout)?.[0] ?? "unknown"];
    }),
  );
  return {
    processors: cpus().length,
    processor: cpus()[0]?.model ?? "unknown",
    memoryBytes: totalmem(),
    kernel: release(),
    versions: { node: process.versions.node, ...Object.fromEntries(versions) },
  };
}

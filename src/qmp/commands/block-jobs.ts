/**
 * Background work as QEMU shows it: initial copy and resync are `mirror` jobs, a failover's merge is a `commit` job; a
 * comparison is a `verify` job, which QEMU has none of.
 */
import { z } from "zod";
import { NegotiationError } from "../../errors.js";
import type { JobStatus } from "../../status.js";
import { type QmpCommand, qmpCommand } from "../command.js";
import { QmpError } from "../errors.js";

export interface BlockJobsParts {
  readonly jobs: () => readonly JobStatus[];
  /** Of a mirror, which is the limit of all mirrors, or of a verify. */
  readonly setSpeed: (id: string, bytesPerSecond: number) => void;
  /** Of a verify. */
  readonly cancel: (id: string) => void;
}

export function blockJobCommands({ jobs, setSpeed, cancel }: BlockJobsParts): QmpCommand[] {
  const find = (device: string): JobStatus => {
    const job = jobs().find(({ id }) => id === device);
    if (job === undefined) throw new QmpError("DeviceNotActive", "no-job", `Block job '${device}' not found`);
    return job;
  };
  return [
    qmpCommand({
      name: "query-block-jobs",
      arguments: z.strictObject({}),
      run: () => Promise.resolve(jobs().map(jobInfo)),
    }),
    qmpCommand({
      name: "block-job-set-speed",
      arguments: z.strictObject({ device: z.string(), speed: z.int().nonnegative() }),
      run: ({ device, speed }) => {
        const { type } = find(device);
        if (type === "commit") {
          const reason = "a failover's merge runs as fast as its disks";
          throw new NegotiationError("no-speed", `Job '${device}' has no speed limit: ${reason}`);
        }
        setSpeed(device, speed);
        return Promise.resolve({});
      },
    }),
    qmpCommand({
      name: "block-job-cancel",
      arguments: z.strictObject({ device: z.string(), force: z.boolean().optional() }),
      run: ({ device }) => {
        const { type } = find(device);
        if (type === "verify") {
          cancel(device);
          return Promise.resolve({});
        }
        const remedy =
          type === "mirror" ? "the replica needs it; x-repl-detach ends both" : "the failover needs it";
        throw new NegotiationError("not-cancellable", `Job '${device}' can't be cancelled: ${remedy}`);
      },
    }),
  ];
}

/** The data of BLOCK_JOB_READY and BLOCK_JOB_COMPLETED. */
export function jobEvent(job: JobStatus, error: Error | null): object {
  const { id, type, len, offset, speed } = job;
  return { device: id, type, len, offset, speed, ...(error !== null && { error: error.message }) };
}

/** The data of BLOCK_JOB_ERROR; what failed is in the error of BLOCK_JOB_COMPLETED, which follows. */
export function jobErrorEvent(job: JobStatus): object {
  return { device: job.id, operation: "write", action: "report" };
}

/** QEMU's BlockJobInfo (qapi/block-core.json). */
function jobInfo(job: JobStatus): object {
  return {
    ...jobEvent(job, null),
    busy: true,
    paused: false,
    ready: job.ready,
    "io-status": "ok",
    status: job.ready ? "ready" : "running",
    "auto-finalize": true,
    "auto-dismiss": true,
  };
}

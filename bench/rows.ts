/** The loads that every system meets: what fio(1) is asked to do, and on what. */

/** What fio is given besides the URI, the time and the part of the disk. */
export type FioJob = Readonly<Record<string, string | number>>;

export interface Row {
  readonly name: string;
  readonly group: RowGroup;
  readonly job: FioJob;
  /** Requests of this size count as MB/s in the tables, small ones as IOPS. */
  readonly unit: "IOPS" | "MB/s";
  /**
   * `data`: on the part of the disk that holds data, where every first write after a checkpoint means copying.
   * `holes`: on a new disk, where a marker is enough.
   */
  readonly on: "data" | "holes";
  /** One fio job for each; 1 unless said. */
  readonly disks?: number;
  /** Work on this part of the disk only. */
  readonly extentBytes?: number;
  /** The guest has written all of it before, in requests of 1 MiB, as one does that installs or restores. */
  readonly isFilledByGuest?: true;
  /** A checkpoint again and again while the row runs. */
  readonly checkpointEveryMs?: number;
}

/** `six`: the goal, on data; `holes`: its writes on holes; `more`: everything else. */
export const ROW_GROUPS = ["six", "holes", "more"] as const;
export type RowGroup = (typeof ROW_GROUPS)[number];

const RANDOM_WRITE_1: FioJob = { rw: "randwrite", bs: "4k", iodepth: 1 };
const RANDOM_WRITE_32: FioJob = { rw: "randwrite", bs: "4k", iodepth: 32 };
const WRITE_1M: FioJob = { rw: "write", bs: "1M", iodepth: 8 };
const HOT_EXTENT_BYTES = 4 * 1024 * 1024;
const FILLED_BYTES = 512 * 1024 * 1024;
/** Before a row with `isFilledByGuest`; once, however long it takes. */
export const FILL: FioJob = { ...WRITE_1M, time_based: 0 };

export const ROWS: readonly Row[] = [
  { name: "randwrite-4k-d1", group: "six", job: RANDOM_WRITE_1, unit: "IOPS", on: "data" },
  { name: "randwrite-4k-d32", group: "six", job: RANDOM_WRITE_32, unit: "IOPS", on: "data" },
  { name: "write-1m-d8", group: "six", job: WRITE_1M, unit: "MB/s", on: "data" },
  {
    name: "randread-4k-d1",
    group: "six",
    job: { rw: "randread", bs: "4k", iodepth: 1 },
    unit: "IOPS",
    on: "data",
  },
  {
    name: "randread-4k-d32",
    group: "six",
    job: { rw: "randread", bs: "4k", iodepth: 32 },
    unit: "IOPS",
    on: "data",
  },
  { name: "read-1m-d8", group: "six", job: { rw: "read", bs: "1M", iodepth: 8 }, unit: "MB/s", on: "data" },

  { name: "randwrite-4k-d1-holes", group: "holes", job: RANDOM_WRITE_1, unit: "IOPS", on: "holes" },
  { name: "randwrite-4k-d32-holes", group: "holes", job: RANDOM_WRITE_32, unit: "IOPS", on: "holes" },
  { name: "write-1m-d8-holes", group: "holes", job: WRITE_1M, unit: "MB/s", on: "holes" },

  {
    name: "randwrite-4k-d32-filled",
    group: "more",
    job: RANDOM_WRITE_32,
    unit: "IOPS",
    on: "holes",
    extentBytes: FILLED_BYTES,
    isFilledByGuest: true,
  },
  {
    name: "write-64k-d16",
    group: "more",
    job: { rw: "write", bs: "64k", iodepth: 16 },
    unit: "MB/s",
    on: "data",
  },
  {
    name: "mixed-70-30-4k-d32",
    group: "more",
    job: { rw: "randrw", rwmixread: 70, bs: "4k", iodepth: 32 },
    unit: "IOPS",
    on: "data",
  },
  // The first pass over so little takes no time to speak of: hardly any copying.
  {
    name: "rewrite-hot-4k-d32",
    group: "more",
    job: { ...RANDOM_WRITE_32, norandommap: 1 },
    unit: "IOPS",
    on: "data",
    extentBytes: HOT_EXTENT_BYTES,
  },
  {
    name: "fsync-each-4k-d1",
    group: "more",
    job: { ...RANDOM_WRITE_1, fsync: 1 },
    unit: "IOPS",
    on: "data",
  },
  {
    name: "clients-4-4k-d8",
    group: "more",
    job: { rw: "randwrite", bs: "4k", iodepth: 8, numjobs: 4 },
    unit: "IOPS",
    on: "data",
  },
  {
    name: "checkpoint-100ms-4k-d16",
    group: "more",
    job: { rw: "randwrite", bs: "4k", iodepth: 16 },
    unit: "IOPS",
    on: "data",
    checkpointEveryMs: 100,
  },
  {
    name: "disks-16-4k-d4",
    group: "more",
    job: { rw: "randwrite", bs: "4k", iodepth: 4 },
    unit: "IOPS",
    on: "holes",
    disks: 16,
  },
];

/** Whether the row changes the disk. */
export function isWriteRow(row: Row): boolean {
  return !String(row.job["rw"]).endsWith("read");
}

/** @param names of rows and groups, or `all` @throws RangeError for a name that there isn't */
export function selectRows(names: readonly string[]): Row[] {
  const known = [...ROW_GROUPS, ...ROWS.map(({ name }) => name), "all"];
  const unknown = names.find((name) => !known.includes(name));
  if (unknown !== undefined) {
    throw new RangeError(`there is no row ${unknown}: choose from ${known.join(", ")}`);
  }
  return ROWS.filter(
    ({ name, group }) => names.includes(name) || names.includes(group) || names.includes("all"),
  );
}

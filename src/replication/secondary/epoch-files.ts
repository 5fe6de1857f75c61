/** The names of an epoch's files (docs/formats.md): the epoch whose number the metadata has is the one whose files count. */

/** A name that is an overlay's, and its epoch. */
const OVERLAY_PATTERN = /^(?:hidden|active)-(\d+)(?:-\d+)?\.(?:log|data)$/;
const HIDDEN_PATTERN = /^hidden-\d+\.log$/;

/** The log of before-images of all disks. */
export function hiddenName(epoch: number): string {
  return `hidden-${epoch}.log`;
}

/** The log of what clients wrote to the views of all disks. */
export function activeName(epoch: number): string {
  return `active-${epoch}.log`;
}

/** What they wrote to the view of one disk. */
export function dataName(epoch: number, disk: number): string {
  return `active-${epoch}-${disk}.data`;
}

/** Whose overlay a file belongs to; null: it is none. */
export function epochOf(file: string): number | null {
  const match = OVERLAY_PATTERN.exec(file);
  return match === null ? null : Number(match[1]);
}

export function isHidden(file: string): boolean {
  return HIDDEN_PATTERN.test(file);
}

/** The epochs that have overlays, each once, in their order. */
export function epochsOf(files: readonly string[]): number[] {
  const numbers = files.flatMap((file) => epochOf(file) ?? []);
  return [...new Set(numbers)].sort((a, b) => a - b);
}

/**
 * How much of a write to a disk's file goes to the kernel at a time. From a longer piece ext4 (Linux 6.18) makes folios of up to 2 MiB in the
 * page cache, in which each later write of 4 KiB looks at the state of every block: twice the processor time and more, as long as the
 * folio lives (docs/performance.md).
 */
export const PIECE_BYTES = 256 * 1024;

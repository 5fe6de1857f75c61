/** How the programs end; docs/cli.md has more words. */
export const ExitCode = { Done: 0, Failed: 1, Usage: 2, WrongState: 3, Unreachable: 4 } as const;

/** For people, by code. */
export const EXIT_CODE_MEANINGS = [
  "done",
  "the operation failed",
  "usage",
  "not possible in this state",
  "can't reach the node",
] as const;

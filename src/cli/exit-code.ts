/** How the programs end; docs/cli.md has more words. */
export const ExitCode = { Done: 0, Failed: 1, Usage: 2, WrongState: 3, Unreachable: 4 } as const;

/** For people, in the order of the codes. */
export const EXIT_CODE_MEANINGS: Readonly<Record<keyof typeof ExitCode, string>> = {
  Done: "done",
  Failed: "the operation failed",
  Usage: "usage",
  WrongState: "not possible in this state",
  Unreachable: "can't reach the node",
};

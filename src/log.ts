/**
 * The log of a node: structured lines on stderr, pretty on a terminal, JSON elsewhere.
 *
 * Offsets, lengths, names and counts are logged; what the disks hold never is.
 */
import { isatty } from "node:tty";
import { pino } from "pino";
import type { DestinationStream, Logger } from "pino";
import { prettyFactory } from "pino-pretty";
import { LogOutput } from "./log-output.js";

export type { Logger } from "pino";

export const LOG_LEVELS = ["error", "warn", "info", "debug", "trace"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export const LOG_FORMATS = ["pretty", "json"] as const;
export type LogFormat = (typeof LOG_FORMATS)[number];

const STDERR_FD = 2;

export interface LoggerOptions {
  readonly level: LogLevel;
  /** null: pretty when stderr is a terminal, JSON otherwise. */
  readonly format: LogFormat | null;
  /** Instead of stderr. */
  readonly destination?: DestinationStream;
}

/** Makes the one logger of a process; modules get children of it (`log.child({ component: "qmp" })`). */
export function createLogger(options: LoggerOptions): Logger {
  const terminal = options.destination === undefined && isatty(STDERR_FD);
  const destination =
    options.destination ??
    new LogOutput(STDERR_FD, (lines, reason) => {
      log.warn({ lines, reason }, "lines of the log were lost");
    });
  const pretty = options.format === null ? terminal : options.format === "pretty";
  const log: Logger = pino(
    { level: options.level, base: null, timestamp: pino.stdTimeFunctions.isoTime },
    pretty ? prettyDestination(destination, terminal) : destination,
  );
  return log;
}

/** Formats line by line, without pino-pretty's own stream, which would lose its last lines at exit. */
function prettyDestination(next: DestinationStream, terminal: boolean): DestinationStream {
  const colorize = terminal && process.env["NO_COLOR"] === undefined;
  const format = prettyFactory({
    colorize,
    colorizeObjects: colorize,
    singleLine: true,
    translateTime: "SYS:HH:MM:ss.l",
  });
  return {
    write(line: string): void {
      next.write(format(line));
    },
  };
}

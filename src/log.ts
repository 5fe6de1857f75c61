/**
 * The log of a node: structured lines on stderr, pretty on a terminal, JSON elsewhere.
 *
 * Offsets, lengths, names and counts are logged; what the disks hold never is.
 */
import { isatty } from "node:tty";
import { pino } from "pino";
import type { DestinationStream, Logger } from "pino";
import { prettyFactory } from "pino-pretty";

export type { Logger } from "pino";

export const LOG_LEVELS = ["error", "warn", "info", "debug", "trace"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export const LOG_FORMATS = ["pretty", "json"] as const;
export type LogFormat = (typeof LOG_FORMATS)[number];

/** Lines that wait for a reader of stderr that has stopped reading; what comes on top is dropped. */
const MAXIMUM_BUFFERED_BYTES = 4 * 1024 * 1024;

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
  const destination = options.destination ?? stderrDestination();
  const pretty = options.format === null ? terminal : options.format === "pretty";
  return pino(
    { level: options.level, base: null, timestamp: pino.stdTimeFunctions.isoTime },
    pretty ? prettyDestination(destination, terminal) : destination,
  );
}

/** Not synchronous: a stderr that nobody reads must not stall the guest's requests. Flushed at exit by pino. */
function stderrDestination(): DestinationStream {
  return pino.destination({ dest: STDERR_FD, sync: false, maxLength: MAXIMUM_BUFFERED_BYTES });
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

/** A log that a test can read. */
import { createLogger, type Logger } from "../../src/log.js";

/** @param logged gets each line, parsed */
export function memoryLogger(logged: Record<string, unknown>[] = []): Logger {
  const write = (line: string): void => {
    logged.push(JSON.parse(line) as Record<string, unknown>);
  };
  return createLogger({ level: "debug", format: "json", destination: { write } });
}

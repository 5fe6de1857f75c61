/** Text of a server's choosing, made safe for a log line or a terminal: one line, no control characters. */
export function printable(text: string): string {
  return text.replace(/\p{C}/gu, "?");
}

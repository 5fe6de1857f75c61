/**
 * Bytes of a QMP connection -> JSON values, as QEMU's parser takes them (qobject/json-streamer.c's job): a
 * value may spread over lines and packets, and several may share one. No socket in sight.
 *
 * Invariants:
 * - What is held between pushes is at most the limit on one message.
 * - Every error is reported once; then everything up to the next newline is skipped, unless the end
 *   of the bad value was seen, so that one bad line costs nothing but itself.
 * - A control character, or 0xff, is an error wherever it comes, and a message may begin right behind it: by that a
 *   client that doesn't know what came before finds its feet again ("Forcing the JSON parser into known-good state").
 */
import { describeError } from "../errors.js";

/** No command of QEMU's interface comes near it. */
export const MAXIMUM_MESSAGE_BYTES = 64 * 1024;

/** Arrays and objects inside each other; the deepest argument of any command here has 4. */
export const MAXIMUM_NESTING = 64;

export type ParsedMessage =
  | { readonly kind: "value"; readonly value: unknown; readonly text: string }
  | { readonly kind: "error"; readonly description: string };

/** What a QMP message is. */
export type JsonObject = Readonly<Record<string, unknown>>;

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Where in the stream the last byte seen was; `skipping` runs to the next newline, `anew` to the next message if that comes first. */
type Position = "between" | "inside" | "string" | "escape" | "skipping" | "anew";

/** Where nothing that has been seen is needed any more. */
const UNHELD: ReadonlySet<Position> = new Set<Position>(["between", "skipping", "anew"]);

const NEWLINE = 0x0a;
const SPACE = 0x20;
/** In no UTF-8 text. */
const NEVER_TEXT = 0xff;
const DOUBLE_QUOTE = 0x22;
const SINGLE_QUOTE = 0x27;
const BACKSLASH = 0x5c;
const OPENING = new Set(Buffer.from("{["));
const CLOSING = new Set(Buffer.from("}]"));
const WHITESPACE = new Set(Buffer.from(" \t\r\n"));

const INITIAL_CAPACITY_BYTES = 1024;

export class JsonStream {
  readonly #maximumBytes: number;
  readonly #decoder = new TextDecoder("utf-8", { fatal: true });
  #position: Position = "between";
  #quote = DOUBLE_QUOTE;
  #nesting = 0;
  /** The beginning of a message whose end has not been seen; grows by doubling. */
  #held = Buffer.alloc(0);
  #heldBytes = 0;

  constructor(maximumBytes: number = MAXIMUM_MESSAGE_BYTES) {
    this.#maximumBytes = maximumBytes;
  }

  /**
   * Yields what `chunk` completes, lazily: a consumer that runs each message before it asks for the next
   * keeps no queue. The chunk must stay unchanged until the generator is exhausted, which it must be.
   */
  *push(chunk: Buffer): Generator<ParsedMessage, void, undefined> {
    let start = 0;
    for (let i = 0; i < chunk.length; i += 1) {
      const byte = chunk[i] ?? 0;
      if (this.#position === "between" || this.#position === "anew") start = i;
      const problem = this.#step(byte, i + 1 - start);
      if (problem !== null) {
        this.#reset(byte === NEWLINE ? "between" : startsAnew(byte) ? "anew" : "skipping");
        yield { kind: "error", description: problem };
      } else if (this.#position === "inside" && this.#nesting === 0) {
        const message = this.#parse(chunk.subarray(start, i + 1));
        this.#reset("between");
        yield message;
      }
    }
    if (!UNHELD.has(this.#position)) this.#hold(chunk.subarray(start));
  }

  /** Moves on by one byte; returns what is wrong with it, if anything is. */
  #step(byte: number, newBytes: number): string | null {
    const isReported = this.#position === "skipping" || this.#position === "anew";
    if (startsAnew(byte) && !isReported) return `JSON parse error, stray ${nameByte(byte)}`;
    switch (this.#position) {
      case "skipping":
        if (byte === NEWLINE) this.#position = "between";
        else if (startsAnew(byte)) this.#position = "anew";
        return null;
      case "anew":
        if (OPENING.has(byte)) this.#begin();
        else if (byte === NEWLINE) this.#position = "between";
        return null;
      case "between":
        if (WHITESPACE.has(byte)) return null;
        if (!OPENING.has(byte)) return `JSON parse error, expecting an object, not ${nameByte(byte)}`;
        this.#begin();
        return null;
      case "escape":
      case "string":
        if (byte < SPACE) return `JSON parse error, ${nameByte(byte)} in a string`;
        if (this.#position === "escape") this.#position = "string";
        else if (byte === this.#quote) this.#position = "inside";
        else if (byte === BACKSLASH) this.#position = "escape";
        break;
      case "inside":
        if (byte === DOUBLE_QUOTE || byte === SINGLE_QUOTE) {
          this.#quote = byte;
          this.#position = "string";
        } else if (OPENING.has(byte)) {
          this.#nesting += 1;
          if (this.#nesting > MAXIMUM_NESTING) return "JSON parse error, nesting depth limit exceeded";
        } else if (CLOSING.has(byte)) {
          this.#nesting -= 1;
        }
        break;
    }
    return this.#heldBytes + newBytes > this.#maximumBytes
      ? `JSON parse error, message longer than ${this.#maximumBytes} bytes`
      : null;
  }

  #begin(): void {
    this.#position = "inside";
    this.#nesting = 1;
  }

  #parse(end: Buffer): ParsedMessage {
    if (this.#heldBytes > 0) this.#hold(end);
    const bytes = this.#heldBytes > 0 ? this.#held.subarray(0, this.#heldBytes) : end;
    try {
      const text = withDoubleQuotes(this.#decoder.decode(bytes));
      return { kind: "value", value: JSON.parse(text), text };
    } catch (error) {
      return { kind: "error", description: `JSON parse error, ${describeError(error)}` };
    }
  }

  #hold(bytes: Buffer): void {
    const needed = this.#heldBytes + bytes.length;
    if (needed > this.#held.length) {
      const grown = Buffer.alloc(Math.max(needed, 2 * this.#held.length, INITIAL_CAPACITY_BYTES));
      this.#held.copy(grown, 0, 0, this.#heldBytes);
      this.#held = grown;
    }
    bytes.copy(this.#held, this.#heldBytes);
    this.#heldBytes = needed;
  }

  #reset(position: Position): void {
    this.#position = position;
    this.#nesting = 0;
    this.#held = Buffer.alloc(0);
    this.#heldBytes = 0;
  }
}

/**
 * A member of an object as it was written, on one line; null: there is none. A number is more exact there than in the value:
 * that has no integers beyond 2^53.
 * @param text of a message: an object, and valid
 */
export function memberText(text: string, name: string): string | null {
  let found: string | null = null;
  let nesting = 0;
  let string = "";
  let begin: number | null = null;
  for (const { 0: token, index } of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\]:,]/g)) {
    if (token === "{" || token === "[") nesting += 1;
    if (token === "}" || token === "]") nesting -= 1;
    if (nesting === 1 && token === ":") {
      begin = JSON.parse(string) === name ? index + 1 : null;
    } else if (begin !== null && (nesting === 0 || (nesting === 1 && token === ","))) {
      // Of two the later one counts, as for JSON.parse().
      found = text
        .slice(begin, index)
        .replace(/[\r\n]/g, " ")
        .trim();
      begin = null;
    }
    if (token.startsWith('"')) string = token;
  }
  return found;
}

/** QEMU takes strings in single quotes too, and the recipes of docs/COLO-FT.txt and block-replication.txt use them. */
function withDoubleQuotes(text: string): string {
  if (!text.includes("'")) return text;
  return text.replace(/"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'/gs, (string) => {
    const inner = string.slice(1, -1);
    return `"${inner.replace(/\\.|"/gs, (part) => (part === '"' ? '\\"' : part === "\\'" ? "'" : part))}"`;
  });
}

function startsAnew(byte: number): boolean {
  return (byte < SPACE && !WHITESPACE.has(byte)) || byte === NEVER_TEXT;
}

function nameByte(byte: number): string {
  return byte > SPACE && byte < 0x7f
    ? `'${String.fromCharCode(byte)}'`
    : `byte 0x${byte.toString(16).padStart(2, "0")}`;
}

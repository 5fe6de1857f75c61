import { expect } from "chai";
import {
  JsonStream,
  memberText,
  MAXIMUM_MESSAGE_BYTES,
  MAXIMUM_NESTING,
} from "../../../src/qmp/json-stream.js";
import type { ParsedMessage } from "../../../src/qmp/json-stream.js";

type Parsed =
  Omit<Extract<ParsedMessage, { kind: "value" }>, "text"> | Extract<ParsedMessage, { kind: "error" }>;

/** What the stream makes of the text, fed in pieces of `pieceBytes`; but for the texts of values. */
function parse(text: string | Buffer, pieceBytes = Number.MAX_SAFE_INTEGER): Parsed[] {
  const stream = new JsonStream();
  const bytes = Buffer.from(text);
  const messages: Parsed[] = [];
  for (let i = 0; i < bytes.length; i += pieceBytes) {
    for (const message of stream.push(Buffer.from(bytes.subarray(i, i + pieceBytes)))) {
      messages.push(message.kind === "value" ? { kind: "value", value: message.value } : message);
    }
  }
  return messages;
}

function values(...expected: unknown[]): Parsed[] {
  return expected.map((value) => ({ kind: "value", value }));
}

/** Values, and the first words of errors. */
function outline(messages: Parsed[]): unknown[] {
  return messages.map((message) =>
    message.kind === "value" ? message.value : message.description.replace(/^(JSON parse error).*$/s, "$1"),
  );
}

describe("qmp/json-stream", () => {
  const text = '{"execute": "a",\n "arguments": {"x": [1, "}]\\"", null]}}\r\n{}[2] {"é": true}\n';

  it("takes values over several lines and several values in one packet", () => {
    expect(parse(text)).to.deep.equal(
      values({ execute: "a", arguments: { x: [1, '}]"', null] } }, {}, [2], { é: true }),
    );
  });

  it("finds the same values wherever the stream is cut", () => {
    for (let pieceBytes = 1; pieceBytes < text.length; pieceBytes += 1) {
      expect(parse(text, pieceBytes), `pieces of ${pieceBytes}`).to.deep.equal(parse(text));
    }
  });

  it("takes QEMU's strings in single quotes", () => {
    expect(parse(`{'a': 'say "it\\'s"', "b": "it's"}`)).to.deep.equal(values({ a: `say "it's"`, b: "it's" }));
  });

  it("reports a line of garbage once and goes on at the next", () => {
    expect(outline(parse('garbage {"lost": 1}\n{"next": 1}\n'))).to.deep.equal([
      "JSON parse error",
      { next: 1 },
    ]);
  });

  it("names the byte that can't begin a message", () => {
    expect(parse("}")).to.deep.equal([
      { kind: "error", description: "JSON parse error, expecting an object, not '}'" },
    ]);
    expect(parse(Buffer.of(0xc3))).to.deep.equal([
      { kind: "error", description: "JSON parse error, expecting an object, not byte 0xc3" },
    ]);
  });

  it("goes on behind a bad value whose end it saw", () => {
    expect(outline(parse('{"a": xx}{"b": 1}'))).to.deep.equal(["JSON parse error", { b: 1 }]);
    expect(outline(parse('[}{"b": 1}'))).to.deep.equal(["JSON parse error", { b: 1 }]);
  });

  it("lets an unterminated string cost its own line only", () => {
    for (const start of ['{"a', '{"a\\', "{'a\\"]) {
      expect(outline(parse(`${start}\n{"b": 1}`)), start).to.deep.equal(["JSON parse error", { b: 1 }]);
    }
  });

  for (const [name, byte] of [
    ["a control character", 0x01],
    ["0xff", 0xff],
  ] as const) {
    it(`begins anew behind ${name}, wherever it comes`, () => {
      const stray = {
        kind: "error",
        description: `JSON parse error, stray byte 0x${byte.toString(16).padStart(2, "0")}`,
      };
      for (const before of ["", '{"a": {"b": [', '{"a": "b', '{"a": "\\']) {
        const bytes = Buffer.concat([Buffer.from(before), Buffer.of(byte), Buffer.from('{"c": 1}')]);
        expect(parse(bytes), before).to.deep.equal([stray, ...values({ c: 1 })]);
        expect(parse(bytes, 1), `${before}, byte by byte`).to.deep.equal([stray, ...values({ c: 1 })]);
      }
      const garbage = Buffer.concat([Buffer.from("garbage "), Buffer.of(byte), Buffer.from('{"c": 1}')]);
      expect(outline(parse(garbage)), "garbage was reported").to.deep.equal(["JSON parse error", { c: 1 }]);
      const twice = Buffer.concat([Buffer.of(byte, byte), Buffer.from('x\n{"c": 1}')]);
      expect(parse(twice), "two of them").to.deep.equal([stray, ...values({ c: 1 })]);
    });
  }

  it("tells a member of a message as it was written, on one line", () => {
    const text = `{"a": {"id": 1}, "x": [2, {"id": 3}], "i\\u0064": 4,\n"id":\n[18446744073709551615,\n"}, \\"id\\": 5"] , "b": 6}`;
    expect(JSON.parse(text)).to.have.keys("a", "x", "id", "b");
    expect(memberText(text, "id")).to.equal(`[18446744073709551615, "}, \\"id\\": 5"]`);
    expect(memberText(text, "b")).to.equal("6");
    expect(memberText(text, "c")).to.equal(null);
    expect(memberText('{"i\\u0064": 1e400}', "id")).to.equal("1e400");
    expect(memberText("{}", "id")).to.equal(null);
  });

  it("refuses bytes that are not UTF-8", () => {
    const bytes = Buffer.concat([Buffer.from('{"a": "'), Buffer.of(0xc3, 0x28), Buffer.from('"}{}')]);
    expect(outline(parse(bytes))).to.deep.equal(["JSON parse error", {}]);
  });

  it("takes a message of the greatest length, and refuses one byte more", () => {
    const filler = "x".repeat(MAXIMUM_MESSAGE_BYTES - '{"a":""}'.length);
    expect(parse(`{"a":"${filler}"}`, 1000)).to.deep.equal(values({ a: filler }));
    expect(parse(`{"a":"${filler}x"}\n{}`, 1000)).to.deep.equal([
      { kind: "error", description: `JSON parse error, message longer than ${MAXIMUM_MESSAGE_BYTES} bytes` },
      { kind: "value", value: {} },
    ]);
  });

  it("refuses deeper nesting than its limit", () => {
    const nested = (depth: number): string => "[".repeat(depth) + "]".repeat(depth);
    expect(parse(nested(MAXIMUM_NESTING))).to.have.length(1);
    expect(parse(`${nested(MAXIMUM_NESTING + 1)}\n{}`)).to.deep.equal([
      { kind: "error", description: "JSON parse error, nesting depth limit exceeded" },
      { kind: "value", value: {} },
    ]);
  });

  it("keeps a member called __proto__ a mere member", () => {
    const [message] = parse('{"__proto__": {"a": 1}}');
    expect(message?.kind === "value" && Object.keys(message.value as object)).to.deep.equal(["__proto__"]);
  });
});

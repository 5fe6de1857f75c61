import { expect } from "chai";
import { z } from "zod";
import { NegotiationError } from "../../../src/errors.js";
import { checkArguments, qmpCommand } from "../../../src/qmp/command.js";

const address = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("unix"), data: z.strictObject({ path: z.string() }) }),
  z.strictObject({ type: z.literal("inet"), data: z.strictObject({ host: z.string(), port: z.string() }) }),
]);

const command = qmpCommand({
  name: "test",
  arguments: z.strictObject({
    enable: z.boolean(),
    speed: z.int().min(0).optional(),
    device: z.string().optional(),
    mode: z.enum(["full", "top"]).optional(),
    addr: address.optional(),
  }),
  run: (args) => Promise.resolve(args.enable),
});

/** Arguments, and what QEMU 7.2 says to the like of them. */
const REFUSED: readonly (readonly [args: object, text: string])[] = [
  [{}, "Parameter 'enable' is missing"],
  [{ enable: "x" }, "Invalid parameter type for 'enable', expected: boolean"],
  [{ enable: true, x: 1 }, "Parameter 'x' is unexpected"],
  [{ enable: true, speed: "9" }, "Invalid parameter type for 'speed', expected: integer"],
  [{ enable: true, speed: 1.5 }, "Invalid parameter type for 'speed', expected: integer"],
  [{ enable: true, device: 5 }, "Invalid parameter type for 'device', expected: string"],
  [{ enable: true, mode: "none" }, "Parameter 'mode' does not accept value 'none'"],
  [{ enable: true, mode: 5 }, "Invalid parameter type for 'mode', expected: string"],
  [{ enable: true, addr: 5 }, "Invalid parameter type for 'addr', expected: object"],
  [{ enable: true, addr: { type: "foo", data: {} } }, "Parameter 'type' does not accept value 'foo'"],
  [{ enable: true, addr: { data: {} } }, "Parameter 'addr.type' is missing"],
  [{ enable: true, addr: { type: "unix", data: {} } }, "Parameter 'addr.data.path' is missing"],
  [
    { enable: true, addr: { type: "unix", data: { path: "p", y: 1 } } },
    "Parameter 'addr.data.y' is unexpected",
  ],
];

describe("qmp/command", () => {
  for (const [args, text] of REFUSED) {
    it(`refuses ${JSON.stringify(args)} in QEMU's words`, () => {
      expect(() => checkArguments(command, args))
        .to.throw(NegotiationError)
        .with.property("message", text);
    });
  }

  it("names the argument whose value is out of bounds", () => {
    expect(() => checkArguments(command, { enable: true, speed: -1 })).to.throw("Parameter 'speed': ");
  });

  it("passes what fits", () => {
    const args = { enable: true, speed: 5, addr: { type: "unix", data: { path: "p" } } };
    expect(checkArguments(command, args)).to.deep.equal(args);
  });
});

/** What a QMP command is to the server, and the check of its arguments in QEMU's words. */
import type { z } from "zod";
import { NegotiationError } from "../errors.js";

/** Who asks. */
export interface QmpContext {
  /** Counts the connections of a server from 1; for logs. */
  readonly clientId: number;
}

/** Made by qmpCommand(), which ties `run` to the schema's type. */
export interface QmpCommand {
  readonly name: string;
  /** A strict object: an argument that it doesn't know is an error. */
  readonly arguments: z.ZodType;
  /**
   * Gets checked arguments; what it resolves with is the `return` member, so `{}` where there is nothing to
   * say. A ReplError becomes an error reply with its message; anything else is a bug and is logged as one.
   */
  run(args: unknown, context: QmpContext): Promise<unknown>;
}

/** Declares a command whose handler sees its arguments as the schema types them. */
export function qmpCommand<S extends z.ZodType>(command: {
  readonly name: string;
  readonly arguments: S;
  run(args: z.output<S>, context: QmpContext): Promise<unknown>;
}): QmpCommand {
  return command;
}

/**
 * The arguments as the command's schema transforms them.
 * @throws NegotiationError in the words of QEMU's qapi/qobject-input-visitor.c
 */
export function checkArguments(command: QmpCommand, args: unknown): unknown {
  const result = command.arguments.safeParse(args, { reportInput: true });
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  throw new NegotiationError(
    "bad-argument",
    issue === undefined ? "Invalid parameters" : describeIssue(issue),
  );
}

function describeIssue(issue: z.core.$ZodIssue): string {
  const name = nameOf(issue.path);
  switch (issue.code) {
    case "unrecognized_keys":
      return `Parameter '${nameOf([...issue.path, issue.keys[0] ?? ""])}' is unexpected`;
    case "invalid_type":
      if (issue.input === undefined) return `Parameter '${name}' is missing`;
      return `Invalid parameter type for '${name}', expected: ${typeName(issue.expected)}`;
    case "invalid_value":
      return describeBadChoice(name, issue.input);
    case "invalid_union":
      return describeBadChoice(name, discriminatorOf(issue));
    case "too_big":
    case "too_small":
    case "invalid_format":
    case "not_multiple_of":
    case "invalid_key":
    case "invalid_element":
    case "custom":
      return name === "" ? issue.message : `Parameter '${name}': ${issue.message}`;
  }
}

/** As QEMU writes it: `instances[0].node-name`. */
function nameOf(path: readonly PropertyKey[]): string {
  return path.reduce<string>((name, member) => {
    if (typeof member === "number") return `${name}[${member}]`;
    return name === "" ? String(member) : `${name}.${String(member)}`;
  }, "");
}

/** QEMU names the last member alone here. */
function describeBadChoice(name: string, value: unknown): string {
  if (value === undefined) return `Parameter '${name}' is missing`;
  if (typeof value !== "string") return `Invalid parameter type for '${name}', expected: string`;
  return `Parameter '${name.slice(name.lastIndexOf(".") + 1)}' does not accept value '${value}'`;
}

function discriminatorOf(issue: z.core.$ZodIssueInvalidUnion): unknown {
  const member = issue.discriminator;
  const input: unknown = issue.input;
  if (member === undefined || typeof input !== "object" || input === null) return input;
  return (input as Readonly<Record<string, unknown>>)[member];
}

/** None of the commands here, nor of QEMU's that they follow, takes a number that isn't an integer. */
function typeName(expected: string): string {
  return expected === "number" || expected === "int" ? "integer" : expected;
}

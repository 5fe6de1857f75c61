/** The owner of a socket as chown(1) takes it: `USER`, `USER:GROUP` or `:GROUP`, by name or by number. */
import { readFileSync } from "node:fs";
import { ConfigError, describeError } from "../errors.js";

/** Numbers; -1: as it is. */
export interface Owner {
  readonly user: number;
  readonly group: number;
}

/** The largest number that chown(2) takes for a user or group. */
const MAXIMUM_ID = 2 ** 32 - 2;

/** Names are those of /etc/passwd and /etc/group. @throws ConfigError */
export function parseOwner(text: string): Owner {
  const [user = "", group = "", ...rest] = text.split(":");
  if (rest.length > 0 || user + group === "") {
    throw new ConfigError("bad-owner", `"${text}" is not an owner: use USER, USER:GROUP or :GROUP`);
  }
  return { user: idOf(user, "user", "/etc/passwd"), group: idOf(group, "group", "/etc/group") };
}

function idOf(name: string, what: "user" | "group", file: string): number {
  if (name === "") return -1;
  if (/^\d+$/.test(name) && Number(name) <= MAXIMUM_ID) return Number(name);
  const line = linesOf(file).find((each) => each.startsWith(`${name}:`));
  const id = Number(line?.split(":")[2]);
  if (Number.isNaN(id)) {
    throw new ConfigError(
      "bad-owner",
      `there is no ${what} "${name}" in ${file}: use the number if it is elsewhere`,
    );
  }
  return id;
}

function linesOf(file: string): string[] {
  try {
    return readFileSync(file, "utf8").split("\n");
  } catch (error) {
    throw new ConfigError("bad-owner", `can't look up names: ${describeError(error)}`, { cause: error });
  }
}

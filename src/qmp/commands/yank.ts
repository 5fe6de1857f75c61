/** QEMU's way out of a connection that hangs (qapi/yank.json), here for the primary's connections to its replica. */
import { z } from "zod";
import { type QmpCommand, qmpCommand } from "../command.js";
import { QmpError } from "../errors.js";

const instance = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("block-node"), "node-name": z.string() }),
  z.strictObject({ type: z.literal("chardev"), id: z.string() }),
  z.strictObject({ type: z.literal("migration") }),
]);

export interface Yankable {
  /** Names of the disks whose replica is connected. */
  readonly connected: () => readonly string[];
  /** Cuts their connections at once, whatever is on its way. */
  readonly yank: () => void;
}

export function yankCommands({ connected, yank }: Yankable): QmpCommand[] {
  return [
    qmpCommand({
      name: "query-yank",
      arguments: z.strictObject({}),
      run: () => Promise.resolve(connected().map((name) => ({ type: "block-node", "node-name": name }))),
    }),
    qmpCommand({
      name: "yank",
      arguments: z.strictObject({ instances: z.array(instance) }),
      run: ({ instances }) => {
        const names = connected();
        // All or none, as in QEMU.
        for (const wanted of instances) {
          if (wanted.type === "block-node" && names.includes(wanted["node-name"])) continue;
          throw new QmpError("DeviceNotFound", "no-instance", "Instance not found");
        }
        if (instances.length > 0) yank();
        return Promise.resolve({});
      },
    }),
  ];
}

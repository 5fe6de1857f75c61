/** QEMU's commands for its NBD server (qapi/block-export.json), here for a secondary's replication exports. */
import { z } from "zod";
import { NegotiationError } from "../../errors.js";
import { STRING_MAXIMUM_BYTES } from "../../nbd/wire/constants.js";
import { type Address, unixAddress } from "../../net/address.js";
import { type QmpCommand, qmpCommand } from "../command.js";

/** A replication server that a manager starts and fills. */
export interface ManagedNbdServer {
  /** @throws StateError if it runs */
  start(address: Address, maxConnections: number | null): Promise<void>;
  /**
   * @param description shown to clients; null: one of the server's own
   * @throws StateError if it does not run or there is no such disk
   */
  add(disk: string, name: string, isWritable: boolean, description: string | null): void;
  remove(name: string, isForced: boolean): Promise<void>;
  stop(): Promise<void>;
}

const port = z.string().regex(/^\d{1,5}$/, "must be a port number");

const inetData = z.object({ host: z.string().min(1), port });
const unixData = z.object({ path: z.string().min(1) });

/** What NBD clients are told in a string (NBD document, "Conventions"). */
const nbdString = z
  .string()
  .refine((text) => Buffer.byteLength(text) <= STRING_MAXIMUM_BYTES, {
    error: ({ input }) =>
      `has ${Buffer.byteLength(String(input))} bytes, at most ${STRING_MAXIMUM_BYTES} are allowed`,
  })
  .refine((text) => !text.includes("\0"), "must not contain a NUL");

/** SocketAddressLegacy, as nbd-server-start takes it. */
const socketAddress = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("inet"), data: inetData }),
  z.strictObject({ type: z.literal("unix"), data: unixData }),
]);

export function nbdServerCommands(server: ManagedNbdServer): QmpCommand[] {
  return [
    qmpCommand({
      name: "nbd-server-start",
      arguments: z.strictObject({ addr: socketAddress, "max-connections": z.int().nonnegative().optional() }),
      run: async ({ addr, "max-connections": maxConnections }) => {
        const limit = maxConnections === undefined || maxConnections === 0 ? null : maxConnections;
        await server.start(addressOf(addr), limit);
        return {};
      },
    }),
    qmpCommand({
      name: "nbd-server-add",
      arguments: z.strictObject({
        device: z.string(),
        name: nbdString.optional(),
        writable: z.boolean().optional(),
        description: nbdString.optional(),
      }),
      run: ({ device, name, writable, description }) => {
        server.add(device, name ?? device, writable === true, description ?? null);
        return Promise.resolve({});
      },
    }),
    qmpCommand({
      name: "nbd-server-remove",
      arguments: z.strictObject({ name: z.string(), mode: z.enum(["safe", "hard"]).optional() }),
      run: async ({ name, mode }) => {
        await server.remove(name, mode === "hard");
        return {};
      },
    }),
    qmpCommand({
      name: "nbd-server-stop",
      arguments: z.strictObject({}),
      run: async () => {
        await server.stop();
        return {};
      },
    }),
  ];
}

function addressOf(address: z.output<typeof socketAddress>): Address {
  if (address.type === "unix") return unixAddress(address.data.path);
  const { host } = address.data;
  const number = Number(address.data.port);
  if (number > 65535)
    throw new NegotiationError("bad-argument", `Parameter 'port': ${number} is no port number`);
  return { kind: "tcp", host, port: number };
}

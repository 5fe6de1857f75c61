/** Finds out what the replica's QMP server is: a secondary of ours, or a QEMU with its replication driver. */
import { z } from "zod";
import { NegotiationError, ProtocolError } from "../../errors.js";
import { formatAddress } from "../../net/address.js";
import type { Endpoint } from "../../net/endpoint.js";
import { QmpClient } from "../../qmp/client.js";
import { QemuControl } from "./qemu-control.js";
import { NodeControl, type ReplicaControl, type ReplicaControlEvents } from "./replica-control.js";

const commandsSchema = z.array(z.object({ name: z.string() }));

/** @throws UnreachableError; NegotiationError if something else answers there */
export async function connectControl(
  address: Endpoint,
  timeoutMs: number,
  events: ReplicaControlEvents,
): Promise<ReplicaControl> {
  const client = await QmpClient.connect(address, { timeoutMs });
  try {
    const answer = commandsSchema.safeParse(await client.execute("query-commands", {}, { timeoutMs }));
    if (!answer.success) throw new ProtocolError("bad-answer", "query-commands was not answered with a list");
    const names = new Set(answer.data.map(({ name }) => name));
    if (names.has("x-repl-handshake")) return new NodeControl(client, timeoutMs, events);
    // A primary of ours answers to QEMU's commands, too.
    if (names.has("x-repl-status")) {
      throw new NegotiationError(
        "no-secondary",
        `the QMP server at ${formatAddress(address)} is a primary's: name that of the secondary (--replica-qmp)`,
      );
    }
    if (names.has("xen-set-replication")) return new QemuControl(client, timeoutMs, events);
    throw new NegotiationError(
      "no-secondary",
      `the QMP server at ${formatAddress(address)} is neither a repl-secondary nor a QEMU with block replication`,
    );
  } catch (error) {
    await client.close();
    throw error;
  }
}

/** A replica as it is named on the command line and over QMP. */
import type { Address } from "../net/address.js";
import { parseNbdUri } from "../nbd/uri.js";
import type { Replica } from "./primary.js";

/** @param uri as replicaField takes it: it names the server, and each disk is asked for by its own name */
export function replicaOf(uri: string, control: Address | null): Replica {
  return { address: parseNbdUri(uri).address, control, uri };
}

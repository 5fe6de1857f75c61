/** A replica as it is named on the command line and over QMP. */
import { ConfigError } from "../errors.js";
import type { Address } from "../net/address.js";
import { parseNbdUri } from "../nbd/uri.js";
import type { Replica } from "./primary.js";

/** @param uri names the server; each disk is asked for by its own name @throws ConfigError */
export function replicaOf(uri: string, control: Address | null): Replica {
  const { address, exportName } = parseNbdUri(uri);
  if (exportName !== "") {
    throw new ConfigError(
      "bad-uri",
      `--replica ${uri}: leave out "${exportName}": each disk is asked for by its own name`,
    );
  }
  return { address, control, uri };
}

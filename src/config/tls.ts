/** The options of TLS, and what they mean for each connection of a node. */
import { z } from "zod";
import type { TlsCredentials } from "../net/tls/acceptor.js";
import type { TlsParameters } from "../net/tls/client.js";
import { badOption, choiceField, directoryField } from "./fields.js";

export interface TlsConfig {
  /** What NBD clients get, and whether QMP over TCP is TLS. */
  readonly mode: "off" | "on" | "require";
  /** null: none. Never with another mode than off. */
  readonly credentials: TlsCredentials | null;
  readonly verifyPeer: boolean;
  /** Of clients; empty: all that are verified. */
  readonly allowedNames: readonly string[];
}

export const tlsFields = {
  tls: choiceField(["off", "on", "require"]).optional(),
  "tls-certificates": directoryField.optional(),
  "tls-psk": directoryField.optional(),
  "tls-verify-peer": choiceField(["true", "false"]).default("false"),
  "tls-allow": z.array(z.string()).default([]),
};

/** @throws ConfigError where the options contradict each other */
export function tlsConfig(
  fields: z.output<z.ZodObject<typeof tlsFields>>,
  nameOption: (option: string) => string,
): TlsConfig {
  const directory = fields["tls-certificates"];
  const file = fields["tls-psk"];
  if (directory !== undefined && file !== undefined) {
    throw badOption(nameOption("tls-psk"), "can't be combined with --tls-certificates");
  }
  const credentials: TlsCredentials | null =
    directory !== undefined
      ? { kind: "certificates", directory }
      : file !== undefined
        ? { kind: "psk", file }
        : null;
  const mode = fields.tls ?? (credentials === null ? "off" : "on");
  if (mode !== "off" && credentials === null) {
    throw badOption(nameOption("tls"), `"${mode}" needs --tls-certificates DIR or --tls-psk FILE`);
  }
  const verifyPeer = fields["tls-verify-peer"] === "true";
  if (verifyPeer && (mode === "off" || credentials?.kind !== "certificates")) {
    throw badOption(nameOption("tls-verify-peer"), "needs --tls-certificates, and --tls on or require");
  }
  const allowedNames = fields["tls-allow"];
  if (allowedNames.length > 0 && (mode !== "require" || !(verifyPeer || credentials?.kind === "psk"))) {
    throw badOption(
      nameOption("tls-allow"),
      "needs --tls require, with --tls-verify-peer or --tls-psk: else there are clients without a name",
    );
  }
  return { mode, credentials, verifyPeer, allowedNames };
}

/** What a node shows when it is the client. */
export function clientParameters({ credentials }: TlsConfig): TlsParameters {
  if (credentials === null) return {};
  return credentials.kind === "psk"
    ? { type: "psk", pskFile: credentials.file }
    : { type: "x509", certificates: credentials.directory };
}

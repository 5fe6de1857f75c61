/** The options of a node, once for the command line's help, the config file's keys and docs/cli.md. */
import type { NodeRole } from "../status.js";

export interface NodeOption {
  readonly name: string;
  readonly nodes: readonly NodeRole[];
  /** What stands for the value in the help; null: it has none. */
  readonly value: string | null;
  /** For one start: not for the config file. */
  readonly isForOneStart?: true;
  readonly repeatable?: true;
  readonly describe: string;
  /** As text for the help; absent where there is none. */
  readonly defaultText?: string;
}

const BOTH = ["primary", "secondary"] as const;

const NODE_OPTIONS = [
  {
    name: "disk",
    nodes: BOTH,
    value: "NAME=PATH",
    repeatable: true,
    describe: "a raw file, block device or NBD URI, exported as NAME (required, repeatable)",
  },
  {
    name: "size",
    nodes: BOTH,
    value: "SIZE",
    describe: "create missing disk files, sparse, of this size (512M, 1.5G; powers of 1024)",
  },
  {
    name: "grow",
    nodes: BOTH,
    value: "NAME=SIZE",
    repeatable: true,
    describe: "make a disk that the node has this large, if it is smaller; on both nodes (repeatable)",
  },
  {
    name: "listen",
    nodes: ["primary"],
    value: "ADDR",
    repeatable: true,
    describe: "where guests connect: HOST:PORT, [V6]:PORT or unix:PATH (repeatable)",
    defaultText: "127.0.0.1:10809",
  },
  {
    name: "listen",
    nodes: ["secondary"],
    value: "ADDR",
    repeatable: true,
    describe: 'where the primary connects: HOST:PORT, [V6]:PORT or unix:PATH (repeatable), or "none"',
    defaultText: "127.0.0.1:10809",
  },
  {
    name: "view",
    nodes: ["secondary"],
    value: "ADDR",
    repeatable: true,
    describe: "where the view of the last checkpoint is served (repeatable)",
    defaultText: "unix:STATE/view.sock",
  },
  {
    name: "replica",
    nodes: ["primary"],
    value: "URI",
    describe:
      "the secondary's NBD server: nbd://HOST[:PORT], nbds://... for TLS, or nbd+unix:///?socket=PATH",
  },
  {
    name: "replica-qmp",
    nodes: ["primary"],
    value: "ADDR",
    describe: "the secondary's QMP server, for checkpoints; without it a manager drives them",
  },
  {
    name: "checkpoint-interval",
    nodes: ["primary"],
    value: "TIME",
    describe: "time between periodic checkpoints (500ms, 5s, 2m); 0: on demand only",
    defaultText: "0",
  },
  {
    name: "ack-mode",
    nodes: ["primary"],
    value: "MODE",
    describe:
      "what a guest's write waits for: async (local disk), memsync (replica has it), sync (has it durable)",
    defaultText: "memsync",
  },
  {
    name: "on-congestion",
    nodes: ["primary"],
    value: "POLICY",
    describe:
      "in ack mode async, if the replica is slower than the guest: block (the guest waits) or detach (go on, resync later)",
    defaultText: "block",
  },
  {
    name: "on-replica-error",
    nodes: ["primary"],
    value: "POLICY",
    describe:
      "while the replica can't take changes: continue (the guest goes on, resync later) or stop (its changes wait)",
    defaultText: "continue",
  },
  {
    name: "replica-timeout",
    nodes: ["primary"],
    value: "TIME",
    describe: "a replica silent for so long is given up until it answers again",
    defaultText: "5s",
  },
  {
    name: "resync-rate",
    nodes: ["primary"],
    value: "RATE",
    describe: "limit of the copying to the replica, a second (100M); 0: none",
    defaultText: "0",
  },
  {
    name: "on-undo-error",
    nodes: ["secondary"],
    value: "POLICY",
    describe:
      "if a before-image can't be kept: break-checkpoint (go on, no rollback) or break-replication (refuse the write)",
    defaultText: "break-checkpoint",
  },
  {
    name: "discard-local-changes",
    nodes: ["secondary"],
    value: null,
    isForOneStart: true,
    describe:
      "give up what only this node has, for a primary with another history; it is saved first, to STATE/salvage-*.log",
  },
  {
    name: "demote",
    nodes: ["secondary"],
    value: null,
    describe: "a node that was promoted is to be a secondary again, of the one that was promoted after it",
  },
  {
    name: "yes",
    nodes: ["secondary"],
    value: null,
    isForOneStart: true,
    describe: "don't ask; required where there is no terminal",
  },
  {
    name: "qmp",
    nodes: BOTH,
    value: "ADDR",
    repeatable: true,
    describe: "where QMP is served, besides unix:STATE/qmp.sock: tcp:HOST:PORT or unix:PATH (repeatable)",
  },
  {
    name: "state-dir",
    nodes: BOTH,
    value: "DIR",
    describe: "STATE: overlays, dirty map, metadata, sockets",
    defaultText: "${XDG_STATE_HOME:-~/.local/state}/nbd-replication/{primary,secondary}",
  },
  {
    name: "allow",
    nodes: BOTH,
    value: "CIDR",
    repeatable: true,
    describe: "hosts that may connect over TCP, NBD and QMP: 192.0.2.0/24, 2001:db8::1 (repeatable)",
    defaultText: "all",
  },
  {
    name: "max-connections",
    nodes: BOTH,
    value: "N",
    describe: "NBD clients at a time, of each server",
    defaultText: "1024",
  },
  {
    name: "max-connections-per-peer",
    nodes: BOTH,
    value: "N",
    describe: "of these from one address",
    defaultText: "64",
  },
  {
    name: "unix-mode",
    nodes: BOTH,
    value: "MODE",
    describe: "of the unix sockets of NBD: 0660",
    defaultText: "as the umask has it",
  },
  {
    name: "unix-owner",
    nodes: BOTH,
    value: "USER[:GROUP]",
    describe: "of the unix sockets of NBD: names or numbers; :GROUP alone leaves the user",
  },
  {
    name: "tls",
    nodes: BOTH,
    value: "MODE",
    describe: "for NBD clients: off, on (both allowed) or require; on and require: QMP over TCP is TLS",
    defaultText: "on with certificates or a key, else off",
  },
  {
    name: "tls-certificates",
    nodes: BOTH,
    value: "DIR",
    describe: "with ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem, client-key.pem",
  },
  {
    name: "tls-psk",
    nodes: BOTH,
    value: "FILE",
    describe: "pre-shared keys instead of certificates, USER:HEXKEY on each line as psktool writes it",
  },
  {
    name: "tls-verify-peer",
    nodes: BOTH,
    value: null,
    describe: "clients must show a certificate of our CA",
  },
  {
    name: "tls-allow",
    nodes: BOTH,
    value: "NAME",
    repeatable: true,
    describe:
      "let in only clients whose certificate has this common or DNS name, or whose key is this user's (repeatable)",
  },
  {
    name: "cache",
    nodes: BOTH,
    value: "MODE",
    describe: "writeback, or unsafe: never wait for stable storage, so that a power loss can cost everything",
    defaultText: "writeback",
  },
  {
    name: "log-level",
    nodes: BOTH,
    value: "LEVEL",
    describe: "error, warn, info, debug or trace",
    defaultText: "info",
  },
  {
    name: "log-format",
    nodes: BOTH,
    value: "FORMAT",
    describe: "pretty or json",
    defaultText: "pretty on a terminal, else json",
  },
] as const satisfies readonly NodeOption[];

/** The options of one of the two programs. */
export function optionsOf(role: NodeRole): readonly NodeOption[] {
  return NODE_OPTIONS.filter((option: NodeOption) => option.nodes.includes(role));
}

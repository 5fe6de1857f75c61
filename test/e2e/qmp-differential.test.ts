/**
 * The same QMP commands, right and wrong, to a QEMU secondary and to ours: the answers are the same, word by word. Where
 * they differ on purpose the script has both, and docs/colo.md the reason.
 */
import { expect } from "chai";

import { NodeProcess } from "../tools/node-process.js";
import { MEBIBYTE } from "../tools/pair.js";
import { Qemu } from "../tools/qemu.js";
import { QmpSession } from "../tools/qmp-session.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 8 * MEBIBYTE;

interface Exchange {
  readonly execute: string;
  readonly args?: object;
  /** What each says where ours differs. */
  readonly differs?: { readonly qemu: object; readonly ours: object };
}

const generic = (desc: string): object => ({ error: { class: "GenericError", desc } });
const set = (enable: boolean, primary: boolean, failover?: boolean): Exchange => ({
  execute: "xen-set-replication",
  args: { enable, primary, ...(failover !== undefined && { failover }) },
});
const yank = (...instances: unknown[]): Exchange => ({ execute: "yank", args: { instances } });
const start = (addr: unknown): Exchange => ({ execute: "nbd-server-start", args: { addr } });
const add = (args: object): Exchange => ({ execute: "nbd-server-add", args });
const remove = (args: object): Exchange => ({ execute: "nbd-server-remove", args });
const status: Exchange = { execute: "query-xen-replication-status" };

/** @param socket where this one's NBD server is to listen */
const script = (socket: string): readonly Exchange[] => [
  // Arguments.
  { execute: "xen-set-replication", args: {} },
  { execute: "xen-set-replication", args: { enable: true } },
  { execute: "xen-set-replication", args: { enable: "yes", primary: false } },
  { execute: "xen-set-replication", args: { enable: true, primary: false, surplus: 1 } },
  set(true, false, true),
  { execute: "no-such-command" },
  { execute: "yank" },
  yank({ type: "block-node", "node-name": "nonesuch" }),
  yank({ type: "chardev", id: "nonesuch" }),
  yank({ type: "migration" }),
  yank({ type: "nonsense" }),
  yank({ type: "block-node" }),
  yank({ type: "block-node", "node-name": "x", surplus: 1 }),
  yank("nonsense"),
  yank(),
  // Nothing is running.
  status,
  set(false, false),
  set(true, true),
  {
    execute: "xen-colo-do-checkpoint",
    differs: {
      qemu: generic("Backup job was cancelled unexpectedly"),
      ours: generic("Block replication is not running"),
    },
  },
  { execute: "x-colo-lost-heartbeat" },
  { execute: "query-colo-status" },
  { execute: "query-block-jobs" },
  { execute: "block-job-cancel", args: { device: "nonesuch" } },
  { execute: "block-job-cancel" },
  { execute: "block-job-set-speed", args: { device: "nonesuch", speed: 1 } },
  { execute: "block-job-set-speed", args: { device: "nonesuch" } },
  // The NBD server.
  { execute: "nbd-server-stop" },
  add({ device: "disk0" }),
  remove({ name: "disk0" }),
  { execute: "nbd-server-start" },
  start({ type: "nonsense", data: {} }),
  start({ type: "unix", data: {} }),
  start({ type: "inet", data: { host: "127.0.0.1" } }),
  start({ type: "inet", data: { host: "127.0.0.1", port: 10809 } }),
  start({ type: "unix", data: { path: socket } }),
  start({ type: "unix", data: { path: socket } }),
  add({}),
  add({ device: "nonesuch" }),
  add({ device: "disk0", name: "" }),
  add({ device: "disk0", name: "no good" }),
  add({ device: "disk0", writable: true }),
  add({ device: "disk0", writable: true }),
  add({ device: "disk0", name: "second" }),
  remove({ name: "nonesuch" }),
  remove({ name: "second", mode: "nonsense" }),
  remove({ name: "second", mode: "safe" }),
  remove({ name: "second" }),
  // Running.
  set(true, false),
  set(true, false),
  set(true, true),
  status,
  { execute: "xen-colo-do-checkpoint" },
  { execute: "query-block-jobs" },
  // Promoted: all else is ignored.
  set(false, false, true),
  set(true, false),
  set(true, true),
  set(false, false),
  set(false, false, true),
  { execute: "xen-colo-do-checkpoint" },
  { execute: "nbd-server-stop" },
  { execute: "nbd-server-stop" },
  { execute: "nbd-server-add", args: { device: "disk0" } },
];

describe("QMP of a secondary, beside QEMU's", () => {
  const workspace = useWorkspace();

  /** `return` or `error` alone: ours has two members more in an error. */
  const ask = async (session: QmpSession, { execute, args }: Exchange): Promise<object> => {
    const answer = await session.command(execute, args);
    if (!("error" in answer)) return { return: answer["return"] };
    const { class: qmpClass, desc } = answer["error"] as { class: string; desc: string };
    return { error: { class: qmpClass, desc } };
  };

  const negotiate = async (path: string): Promise<QmpSession> => {
    const session = await QmpSession.connect(workspace, path);
    await session.answer();
    await session.command("qmp_capabilities");
    return session;
  };

  it("gives the same answers and errors from the first command to after the failover", async () => {
    await Qemu.secondary(workspace, "qemu", SIZE_BYTES);
    const node = await NodeProcess.start(workspace, "secondary", [
      ...["--disk", `disk0=${workspace.path("ours.img")}`, "--size", String(SIZE_BYTES), "--listen", "none"],
    ]);
    const [theirs, ours] = [await negotiate(workspace.path("qemu-peer.qmp")), await negotiate(node.qmpPath)];
    const ourScript = script(workspace.path("ours-nbd.sock"));
    for (const [index, exchange] of script(workspace.path("qemu-nbd.sock")).entries()) {
      const what = `${index}: ${exchange.execute} ${JSON.stringify(exchange.args ?? {})}`;
      const [theirAnswer, ourAnswer] = [
        await ask(theirs, exchange),
        await ask(ours, ourScript[index] ?? exchange),
      ];
      expect(theirAnswer, `QEMU, ${what}`).to.deep.equal(exchange.differs?.qemu ?? theirAnswer);
      expect(ourAnswer, what).to.deep.equal(exchange.differs?.ours ?? theirAnswer);
    }
  });
});

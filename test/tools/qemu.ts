/** QEMU's own block replication as a process: a bare block layer with QMP, without a guest. */
import { QmpClient } from "../../src/qmp/client.js";
import type { TestProcess } from "./process.js";
import { succeed } from "./process.js";
import { serveOn } from "./socket-server.js";
import type { Workspace } from "./workspace.js";

/** As in docs/colo.md. */
const BARE = ["-machine", "none", "-nodefaults", "-display", "none", "-S"];
const DISK = "driver=raw,file.driver=file";

export class Qemu {
  readonly process: TestProcess;
  /** What the tests command it with; it takes one client at a time. */
  readonly qmp: QmpClient;
  readonly #workspace: Workspace;
  readonly #name: string;

  private constructor(workspace: Workspace, name: string, process: TestProcess, qmp: QmpClient) {
    this.#workspace = workspace;
    this.#name = name;
    this.process = process;
    this.qmp = qmp;
  }

  /**
   * Its devices are disk0, disk1..., the views over them top, top1...; the images (imageOf()) are new and empty unless
   * they are there. Replication is not started.
   */
  static async secondary(workspace: Workspace, name: string, sizeBytes: number, disks = 1): Promise<Qemu> {
    const drives: string[] = [];
    for (let disk = 0; disk < disks; disk++) {
      const image = workspace.path(Qemu.imageOf(name, disk));
      const [active, hidden] = [`${image}-active.qcow2`, `${image}-hidden.qcow2`];
      await succeed("truncate", ["--size", String(sizeBytes), image]);
      for (const path of [active, hidden]) {
        await succeed("qemu-img", ["create", "-q", "-f", "qcow2", path, String(sizeBytes)]);
      }
      const overlays = `file.driver=qcow2,file.file.filename=${active},file.backing.driver=qcow2,file.backing.file.filename=${hidden},file.backing.backing=disk${disk}`;
      const top = disk === 0 ? "top" : `top${disk}`;
      drives.push(
        `if=none,id=disk${disk},discard=unmap,${DISK},file.filename=${image}`,
        `if=none,id=childs${disk},driver=replication,mode=secondary,top-id=${top},${overlays}`,
        `if=none,id=${top},driver=quorum,read-pattern=fifo,vote-threshold=1,children.0=childs${disk}`,
      );
    }
    return Qemu.#start(workspace, name, drives);
  }

  /** Its devices are colo0, colo1...; the images (imageOf()) are new and empty unless they are there. No replica. */
  static async primary(workspace: Workspace, name: string, sizeBytes: number, disks = 1): Promise<Qemu> {
    const drives: string[] = [];
    for (let disk = 0; disk < disks; disk++) {
      const image = workspace.path(Qemu.imageOf(name, disk));
      await succeed("truncate", ["--size", String(sizeBytes), image]);
      drives.push(
        `if=none,id=colo${disk},driver=quorum,read-pattern=fifo,vote-threshold=1,children.0.driver=raw,children.0.file.driver=file,children.0.file.filename=${image}`,
      );
    }
    return Qemu.#start(workspace, name, drives);
  }

  /** Where the disk of a process of this name is, in its workspace. */
  static imageOf(name: string, disk = 0): string {
    return disk === 0 ? `${name}.img` : `${name}-disk${disk}.img`;
  }

  static async #start(workspace: Workspace, name: string, drives: readonly string[]): Promise<Qemu> {
    const [own, other] = [workspace.path(`${name}.qmp`), workspace.path(`${name}-peer.qmp`)];
    const process = await serveOn(workspace, other, "qemu-system-x86_64", [
      ...BARE,
      ...["-qmp", `unix:${own},server=on,wait=off`, "-qmp", `unix:${other},server=on,wait=off`],
      ...drives.flatMap((drive) => ["-drive", drive]),
    ]);
    const qmp = await QmpClient.connect({ kind: "unix", path: own });
    workspace.onEnd(() => qmp.close());
    return new Qemu(workspace, name, process, qmp);
  }

  /** A second QMP socket, for whoever is to command it. */
  get peerQmp(): string {
    return `unix:${this.#workspace.path(`${this.#name}-peer.qmp`)}`;
  }

  get nbdPath(): string {
    return this.#workspace.path(`${this.#name}-nbd.sock`);
  }

  uri(exportName: string): string {
    return `nbd+unix:///${exportName}?socket=${this.nbdPath}`;
  }

  execute(command: string, args: object = {}): Promise<unknown> {
    return this.qmp.execute(command, args);
  }

  /** Exports devices for writing, each by its name or another. @param tcpPort on 127.0.0.1, instead of nbdPath */
  async serve(exports: Readonly<Record<string, string>>, tcpPort?: number): Promise<void> {
    const addr =
      tcpPort === undefined
        ? { type: "unix", data: { path: this.nbdPath } }
        : { type: "inet", data: { host: "127.0.0.1", port: String(tcpPort) } };
    await this.execute("nbd-server-start", { addr });
    for (const [name, device] of Object.entries(exports)) {
      await this.execute("nbd-server-add", { device, name, writable: true });
    }
  }

  /** A primary begins to replicate to a unix socket or HOST:PORT. @param server QEMU's options of the NBD client */
  async replicateTo(server: string, disks = 1): Promise<void> {
    for (let disk = 0; disk < disks; disk++) {
      const node = disk === 0 ? "replica" : `replica${disk}`;
      const drive = `driver=replication,mode=primary,node-name=${node},file.driver=nbd,${server},file.export=disk${disk}`;
      await this.execute("human-monitor-command", { "command-line": `drive_add -n buddy ${drive}` });
      await this.execute("x-blockdev-change", { parent: `colo${disk}`, node });
    }
    await this.execute("xen-set-replication", { enable: true, primary: true });
  }
}

/** A pair over TLS as its operators have it: guests, link, QMP, command line; and what is refused, with the reason in the log. */
import { expect } from "chai";
import { join } from "node:path";

import { QmpClient } from "../../src/qmp/client.js";
import { parseAddress } from "../../src/net/address.js";
import { PSK, useAuthorities, writePskFile } from "../tools/certificates.js";
import { expectPattern, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { NodeProcess, runNode } from "../tools/node-process.js";
import { failureOf } from "../tools/outcome.js";
import { Pair, startPair } from "../tools/pair.js";
import { run, succeed } from "../tools/process.js";
import { Exit } from "../tools/refusal.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace } from "../tools/workspace.js";

describe("a pair over TLS", () => {
  const workspace = useWorkspace();
  const certs = useAuthorities({
    server: {},
    client: { name: "primary.example", alternatives: "DNS:primary.example" },
  });

  const mutual = (): string[] => ["--tls-certificates", certs.pki, "--tls-verify-peer"];

  /** The first warning of a node's log that has this in it. */
  const warning = async (node: NodeProcess, text: string): Promise<string> => {
    const found = (): string | undefined =>
      node.log.find(({ level, msg }) => level >= 40 && msg.includes(text))?.msg;
    return (await waitFor(`a warning of "${text}"`, found, (line) => line !== undefined)) ?? "";
  };

  it("replicates, takes checkpoints, verifies and fails over, all of it by certificates of both sides", async () => {
    const pair = await startPair(workspace, {
      scheme: "nbds",
      primary: [...mutual(), "--tls", "on"],
      secondary: [...mutual(), "--tls", "require", "--tls-allow", "primary.example", "--view", "127.0.0.1:0"],
    });
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    const epoch = await pair.checkpoint();
    const status = await pair.secondary.status();
    expect(status.epoch).to.equal(epoch);
    expect(status.clients.map(({ purpose, tls }) => ({ purpose, tls }))).to.deep.equal([
      { purpose: "replication", tls: { version: "TLSv1.3", user: "primary.example" } },
    ]);
    expect(await pair.secondary.succeed("status")).to.match(
      /replication from +127\.0\.0\.1:\d+, disk0, TLSv1\.3 as primary\.example/,
    );
    await pair.primary.succeed("verify");
    await writePattern(pair.primaryUri(), 0x22, "64k", "64k");
    await pair.primary.process.kill();
    await pair.failOver();
    const view = await pair.secondary.tcpAddress("view");
    const disk = `nbds://${view}/disk0?tls-certificates=${certs.pki}`;
    const image = workspace.path("view.img");
    await succeed("nbdcopy", [disk, image]);
    await expectPattern(image, [0x11, "0", "1M"]);
  });

  it("switches over by a pre-shared key, and the old primary's disk is the new one's", async () => {
    const keys = await writePskFile(workspace.path("keys.psk"), { pair: PSK });
    const tls = ["--tls-psk", keys, "--tls", "on"];
    const pair = await startPair(workspace, { scheme: "nbds", primary: tls, secondary: tls });
    await writePattern(pair.primaryUri(), 0x33, "1M", "1M");
    await pair.primary.succeed("switch-over");
    await pair.secondary.waitForStatus("taken over", ({ stage }) => stage === "done");
    await pair.primary.process.ended();
    await pair.secondary.succeed("stop");
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("serves QMP over TCP by TLS alone, to the command line too", async () => {
    const secondary = new Pair(workspace, { secondary: [...mutual(), "--tls", "require"] });
    const node = await secondary.startSecondary();
    const qmp = `tcp:${secondary.addresses.qmp}`;
    const status = ["status", "--json", "--qmp", qmp, "--tls-certificates", certs.pki];
    const shown = await runNode("secondary", status);
    expect([shown.code, shown.stderr]).to.deep.equal([Exit.Done, ""]);
    expect(JSON.parse(shown.stdout)).to.deep.include({ role: "secondary" });

    const address = parseAddress(qmp);
    const plain = await failureOf(QmpClient.connect(address, { timeoutMs: 500 }));
    expect(plain.message).to.include("no answer within 500 ms, as from a server that waits for TLS");
    const nameless = { ...address, tls: { certificates: await certs.authority.issue({}) } };
    const refused = await failureOf(QmpClient.connect(nameless));
    expect(refused.message).to.match(/certificate|hung up|closed the connection/);
    expect(await warning(node, "QMP client refused")).to.match(/^QMP client refused: no TLS session: it /);

    const misnamed = await runNode("secondary", [...status, "--tls-hostname", "elsewhere"]);
    expect(misnamed.code).to.equal(Exit.Unreachable);
    expect(misnamed.stderr).to.match(
      /its certificate is for another host: .*: reach it by a name that this has, or say that name by tls-hostname\n$/,
    );
  });

  it("refuses a primary that comes without TLS, and logs that", async () => {
    const pair = new Pair(workspace, {
      scheme: "nbd",
      primary: ["--tls-certificates", certs.pki, "--tls", "on"],
      secondary: [...mutual(), "--tls", "require"],
    });
    await pair.startSecondary();
    await pair.startPrimary().catch(() => undefined);
    expect(await warning(pair.secondary, "client refused")).to.equal(
      "client refused: no TLS, which is required",
    );
  });

  it("refuses a secondary of another CA", async () => {
    const pair = new Pair(workspace, {
      scheme: "nbds",
      primary: ["--tls-certificates", certs.pki],
      secondary: ["--tls-certificates", await certs.stranger.issue()],
    });
    await pair.startSecondary();
    await pair.startPrimary();
    const { primary } = await pair.primary.status();
    expect(primary?.link.lastError).to.include("unknown CA: its certificate is not from ours");
    expect((await pair.secondary.status()).stage).to.equal("none");
  });

  it("refuses a primary whose name is not allowed", async () => {
    const pair = new Pair(workspace, {
      scheme: "nbds",
      primary: ["--tls-certificates", certs.pki],
      secondary: [...mutual(), "--tls", "require", "--tls-allow", "somebody.else"],
    });
    await pair.startSecondary();
    await pair.startPrimary();
    expect(await warning(pair.secondary, "not allowed")).to.equal(
      'QMP client refused: no TLS session: its certificate is for "primary.example", which is not allowed',
    );
    const { primary } = await pair.primary.status();
    expect(primary?.link.lastError).to.match(
      /closed the connection, as a server does that refuses our certificate: its log tells why$/,
    );
    expect((await pair.secondary.status()).stage).to.equal("none");
  });

  it("forbids a link without TLS where TLS is required of this node", async () => {
    const options = [
      "--disk",
      `disk0=${workspace.path("x.img")}`,
      "--size",
      "1M",
      "--state-dir",
      workspace.path("s"),
    ];
    const tls = ["--tls", "require", "--tls-certificates", certs.pki];
    const { code, stderr } = await runNode("primary", [...options, ...tls, "--replica", "nbd://127.0.0.1"]);
    expect(code).to.equal(Exit.Usage);
    expect(stderr).to.include("use nbds://");
  });

  describe("as guests see it", () => {
    const start = async (...tls: string[]): Promise<string> => {
      const node = await NodeProcess.start(workspace, "primary", [
        ...["--disk", `disk0=${workspace.path("disk.img")}`, "--size", "16M", "--listen", "127.0.0.1:0"],
        ...tls,
      ]);
      return node.tcpAddress("guest");
    };
    const x509 = (directory: string): string[] => [
      ...["--object", `tls-creds-x509,id=tls0,endpoint=client,dir=${directory}`],
      "--image-opts",
    ];
    const qemuDisk = (address: string): string => {
      const [host = "", port = ""] = address.split(":");
      return `driver=nbd,host=${host},port=${port},export=disk0,tls-creds=tls0`;
    };

    it("nbdcopy, nbdinfo and QEMU's tools come by certificates; none without where TLS is required", async () => {
      const address = await start(...mutual(), "--tls", "require");
      const uri = `nbds://${address}/disk0?tls-certificates=${certs.pki}`;
      const image = workspace.path("source.img");
      await succeed("dd", ["if=/dev/urandom", `of=${image}`, "bs=1M", "count=16", "status=none"]);
      await succeed("nbdcopy", ["--connections=4", image, uri]);
      const described = JSON.parse(await succeed("nbdinfo", ["--json", uri])) as unknown;
      expect(described).to.deep.include({ TLS: true, structured: true });
      const copy = workspace.path("copy.img");
      await succeed("nbdcopy", [uri, copy]);
      await expectSameContent(image, copy);
      const back = workspace.path("back.img");
      await succeed("qemu-img", ["convert", ...x509(certs.pki), "-O", "raw", qemuDisk(address), back]);
      await expectSameContent(image, back);

      expect((await run("nbdinfo", [`nbd://${address}/disk0`])).code).to.not.equal(0);
      const unnamed = await certs.authority.issue({});
      expect(
        (await run("nbdinfo", [`nbds://${address}/disk0?tls-certificates=${unnamed}`])).code,
      ).to.not.equal(0);
      expect((await run("qemu-img", ["info", `nbd://${address}/disk0`])).stderr).to.match(/TLS/i);
    });

    it("nbdcopy and QEMU's tools come by a pre-shared key", async () => {
      const directory = await certs.authority.issue({});
      const keys = await writePskFile(join(directory, "keys.psk"), { qemu: PSK });
      const address = await start("--tls-psk", keys, "--tls", "require");
      const image = workspace.path("source.img");
      await succeed("dd", ["if=/dev/urandom", `of=${image}`, "bs=1M", "count=16", "status=none"]);
      await succeed("nbdcopy", [image, `nbds://qemu@${address}/disk0?tls-psk-file=${keys}`]);
      const back = workspace.path("back.img");
      const psk = ["--object", `tls-creds-psk,id=tls0,endpoint=client,dir=${directory}`, "--image-opts"];
      await succeed("qemu-img", ["convert", ...psk, "-O", "raw", qemuDisk(address), back]);
      await expectSameContent(image, back);
    });

    it("both kinds come where TLS is on", async () => {
      const address = await start("--tls-certificates", certs.pki);
      expect(JSON.parse(await succeed("nbdinfo", ["--json", `nbd://${address}/disk0`]))).to.deep.include({
        TLS: false,
      });
      const secured = `nbds://${address}/disk0?tls-certificates=${certs.pki}`;
      expect(JSON.parse(await succeed("nbdinfo", ["--json", secured]))).to.deep.include({ TLS: true });
    });

    it("a client that demands TLS gets none where it is off", async () => {
      const address = await start();
      const refused = await run("nbdinfo", [`nbds://${address}/disk0?tls-certificates=${certs.pki}`]);
      expect(refused.code).to.not.equal(0);
    });
  });
});

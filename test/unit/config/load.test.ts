import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { expect } from "chai";
import { loadPrimaryConfig, loadSecondaryConfig, loadStateDir } from "../../../src/config/load.js";
import { defaultQmpAddress } from "../../../src/config/schema.js";
import type { OptionValues } from "../../../src/config/schema.js";
import { ConfigError } from "../../../src/errors.js";

const environment = { HOME: "/home/u" };
const disk = "disk0=/srv/disk0.img";

describe("config/load", () => {
  let directory: string;

  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), "config-"));
  });

  afterEach(() => {
    rmSync(directory, { recursive: true });
  });

  function file(text: string): string {
    const path = join(directory, "pair.yaml");
    writeFileSync(path, text);
    return path;
  }

  it("gives a primary its defaults", () => {
    expect(loadPrimaryConfig({ disk }, environment)).to.deep.equal({
      disks: [{ name: "disk0", path: "/srv/disk0.img" }],
      createSizeBytes: null,
      growth: [],
      listen: [{ kind: "tcp", host: "127.0.0.1", port: 10809 }],
      replica: null,
      replicaQmp: null,
      checkpointIntervalMs: 0,
      ackMode: "memsync",
      onCongestion: "block",
      onReplicaError: "continue",
      replicaTimeoutMs: 5000,
      resyncBytesPerSecond: 0,
      qmp: [],
      stateDir: "/home/u/.local/state/nbd-replication/primary",
      logLevel: "info",
      cache: "writeback",
      tls: { mode: "off", credentials: null, verifyPeer: false, allowedNames: [] },
      access: { allow: [], maxConnections: null, maxConnectionsPerPeer: null, sockets: {} },
      sockets: [],
      logFormat: null,
    });
  });

  it("gives a secondary its defaults", () => {
    expect(loadSecondaryConfig({ disk }, { ...environment, XDG_STATE_HOME: "/state" })).to.deep.equal({
      disks: [{ name: "disk0", path: "/srv/disk0.img" }],
      createSizeBytes: null,
      growth: [],
      listen: [{ kind: "tcp", host: "127.0.0.1", port: 10809 }],
      view: [{ kind: "unix", path: "/state/nbd-replication/secondary/view.sock" }],
      onUndoError: "break-checkpoint",
      discardLocalChanges: false,
      demote: false,
      isConfirmed: false,
      qmp: [],
      stateDir: "/state/nbd-replication/secondary",
      logLevel: "info",
      cache: "writeback",
      tls: { mode: "off", credentials: null, verifyPeer: false, allowedNames: [] },
      access: { allow: [], maxConnections: null, maxConnectionsPerPeer: null, sockets: {} },
      sockets: [],
      logFormat: null,
    });
  });

  it("reads every option of a primary", () => {
    const values: OptionValues = {
      disk: ["a=rel.img", "b=nbd+unix:///x?socket=/run/q.sock"],
      size: "1.5G",
      grow: ["b=20G"],
      listen: ["unix:/run/p.sock", "[::1]:10810"],
      replica: "nbd://secondary:10809",
      "replica-qmp": "tcp:secondary:10810",
      "checkpoint-interval": "5s",
      "ack-mode": "sync",
      "replica-timeout": "500ms",
      "resync-rate": "100M",
      qmp: "127.0.0.1:4444",
      "state-dir": "/state",
      cache: "unsafe",
      allow: ["192.0.2.0/24"],
      "max-connections": "200",
      "max-connections-per-peer": "20",
      "unix-mode": "660",
      "unix-owner": "root:107",
      tls: "require",
      "tls-certificates": "pki",
      "tls-verify-peer": "true",
      "tls-allow": ["guest.example"],
      "on-congestion": "block",
      "on-replica-error": "stop",
      "log-level": "debug",
      "log-format": "json",
    };
    expect(loadPrimaryConfig(values, environment)).to.deep.equal({
      disks: [
        { name: "a", path: resolve("rel.img") },
        { name: "b", path: "nbd+unix:///x?socket=/run/q.sock" },
      ],
      createSizeBytes: 1.5 * 1024 ** 3,
      growth: [{ name: "b", sizeBytes: 20 * 1024 ** 3 }],
      listen: [
        { kind: "unix", path: "/run/p.sock" },
        { kind: "tcp", host: "::1", port: 10810 },
      ],
      replica: "nbd://secondary:10809",
      replicaQmp: { kind: "tcp", host: "secondary", port: 10810 },
      checkpointIntervalMs: 5000,
      ackMode: "sync",
      onCongestion: "block",
      onReplicaError: "stop",
      cache: "unsafe",
      tls: {
        mode: "require",
        credentials: { kind: "certificates", directory: resolve("pki") },
        verifyPeer: true,
        allowedNames: ["guest.example"],
      },
      access: {
        allow: ["192.0.2.0/24"],
        maxConnections: 200,
        maxConnectionsPerPeer: 20,
        sockets: { mode: 0o660, user: 0, group: 107 },
      },
      sockets: [],
      replicaTimeoutMs: 500,
      resyncBytesPerSecond: 100 * 1024 ** 2,
      qmp: [{ kind: "tcp", host: "127.0.0.1", port: 4444 }],
      stateDir: "/state",
      logLevel: "debug",
      logFormat: "json",
    });
  });

  it("turns TLS on with credentials alone, also from a config file", () => {
    const path = file("tls-psk: /etc/keys.psk\n");
    expect(loadPrimaryConfig({ disk, config: path }, environment).tls).to.deep.equal({
      mode: "on",
      credentials: { kind: "psk", file: "/etc/keys.psk" },
      verifyPeer: false,
      allowedNames: [],
    });
    const verifying = file("tls-certificates: /pki\ntls-verify-peer: true\n");
    expect(loadSecondaryConfig({ disk, config: verifying }, environment).tls.verifyPeer).to.equal(true);
  });

  it("takes sockets from systemd instead of the default address", () => {
    const activated = { ...environment, LISTEN_PID: String(process.pid), LISTEN_FDS: "1" };
    const sockets = [{ fd: 3, name: "unknown" }];
    expect(loadPrimaryConfig({ disk }, activated)).to.deep.include({ listen: [], sockets });
    expect(loadSecondaryConfig({ disk }, activated)).to.deep.include({ listen: [], sockets });
    const listen = ["127.0.0.1:1"];
    expect(loadPrimaryConfig({ disk, listen }, activated).listen).to.have.length(1);
    expect(() => loadSecondaryConfig({ disk, listen: ["none"] }, activated)).to.throw("sockets from systemd");
  });

  it("leaves the NBD server of a secondary to a manager when told so", () => {
    const config = loadSecondaryConfig({ disk, listen: "none", view: "127.0.0.1:0" }, environment);
    expect(config.listen).to.deep.equal([]);
    expect(config.view).to.deep.equal([{ kind: "tcp", host: "127.0.0.1", port: 0 }]);
  });

  it("reads the same from a file, and lets the command line win option by option", () => {
    const config = file(
      "disk: [disk0=/a.img, disk1=/b.img]\nsize: 4096\ncheckpoint-interval: 0\nlog-level: warn\n",
    );
    const loaded = loadPrimaryConfig({ config, "log-level": "error" }, environment);
    expect(loaded).to.deep.include({
      disks: [
        { name: "disk0", path: "/a.img" },
        { name: "disk1", path: "/b.img" },
      ],
      createSizeBytes: 4096,
      checkpointIntervalMs: 0,
      logLevel: "error",
    });
    expect(loadPrimaryConfig({ config, disk }, environment).disks).to.deep.equal([
      { name: "disk0", path: "/srv/disk0.img" },
    ]);
  });

  it("finds the state directory in the file, for the verbs", () => {
    const config = file("disk: disk0=/a.img\nstate-dir: /srv/state\n");
    expect(loadStateDir("primary", { config }, environment)).to.equal("/srv/state");
    expect(loadStateDir("primary", { config, "state-dir": "/other" }, environment)).to.equal("/other");
    expect(defaultQmpAddress("/other")).to.deep.equal({ kind: "unix", path: "/other/qmp.sock" });
  });

  it("ignores a relative XDG_STATE_HOME, as its specification says", () => {
    expect(loadStateDir("secondary", {}, { HOME: "/h", XDG_STATE_HOME: "rel" })).to.equal(
      "/h/.local/state/nbd-replication/secondary",
    );
  });

  const primaryRefusals: readonly (readonly [OptionValues, string])[] = [
    [{}, "no disk given: use --disk NAME=PATH"],
    [{ disk: "x" }, '--disk: "x" is not NAME=PATH'],
    [{ disk: "a b=x" }, '--disk: "a b" can\'t name a disk'],
    [{ disk: "a=" }, '--disk: "a=" lacks the path'],
    [{ disk: "a=nbd+unix:///x" }, '--disk: "nbd+unix:///x"'],
    [{ disk: ["a=/x", "a=/y"] }, '--disk: two disks are named "a"'],
    [{ disk: ["a=/x", "b=/x"] }, '--disk: two disks are kept in "/x"'],
    [{ disk, size: "12Q" }, '--size: "12Q" is not a size'],
    [{ disk, size: "1000" }, "--size: \"1000\" can't be a disk's size"],
    [{ disk, grow: "20G" }, '--grow: "20G" is not NAME=SIZE, as in disk0=20G'],
    [{ disk, grow: "disk0=x" }, '--grow: "x" is not a size'],
    [{ disk, grow: "other=1G" }, '--grow: no --disk is named "other"'],
    [{ disk, grow: ["disk0=1G", "disk0=2G"] }, '--grow: two sizes are given for "disk0"'],
    [{ disk, size: ["1G", "2G"] }, "--size: may be given once, not 2 times"],
    [{ disk, listen: "here" }, '--listen: "here" is not an address'],
    [{ disk, listen: "none" }, '--listen: "none" is not an address'],
    [{ disk, listen: ["h:1", "h:1"] }, 'two listeners have the address "h:1"'],
    [{ disk, replica: "http://x" }, '--replica: "http://x"'],
    [
      { disk, replica: "nbd://" },
      `--replica: "nbd://" can't be used: the host is missing: use nbd://HOST[:PORT][/EXPORT]`,
    ],
    [{ disk, tls: "on" }, '--tls: "on" needs --tls-certificates DIR or --tls-psk FILE'],
    [{ disk, allow: ["10.0.0.0/40"] }, '--allow: "10.0.0.0/40" is not a network'],
    [{ disk, "max-connections": "0" }, '--max-connections: "0" is not a number from 1 on'],
    [{ disk, "unix-mode": "0888" }, '--unix-mode: "0888" is not a mode'],
    [{ disk, "unix-owner": ":" }, '--unix-owner: ":" is not an owner'],
    [{ disk, tls: "yes" }, '--tls: "yes" is not one of off, on, require'],
    [{ disk, "tls-certificates": "/a", "tls-psk": "/b" }, "--tls-psk: can't be combined"],
    [{ disk, "tls-verify-peer": "true" }, "--tls-verify-peer: needs --tls-certificates"],
    [
      { disk, tls: "off", "tls-certificates": "/a", "tls-verify-peer": "true" },
      "needs --tls-certificates, and --tls",
    ],
    [{ disk, "tls-psk": "/a", "tls-allow": "x" }, "--tls-allow: needs --tls require"],
    [{ disk, "replica-qmp": "h:1" }, "--replica-qmp: needs --replica"],
    [{ disk, replica: "nbd://h", "checkpoint-interval": "5s" }, "--checkpoint-interval: needs --replica-qmp"],
    [{ disk, "ack-mode": "fast" }, '--ack-mode: "fast" is not one of async, memsync, sync'],
    [{ disk, "replica-timeout": "0" }, "--replica-timeout: must be at least 100ms"],
    [{ disk, "state-dir": "" }, "--state-dir: a directory must be named"],
    [{ disk, "state-dir": `/${"x".repeat(120)}` }, "is longer than the kernel's 107 bytes"],
  ];
  for (const [values, message] of primaryRefusals) {
    it(`refuses ${JSON.stringify(values).slice(0, 80)} of a primary`, () => {
      expect(() => loadPrimaryConfig(values, environment)).to.throw(ConfigError, message);
    });
  }

  it('refuses "none" beside an address', () => {
    expect(() => loadSecondaryConfig({ disk, listen: ["none", "h:1"] }, environment)).to.throw(
      ConfigError,
      '--listen: "none" can\'t be combined with an address',
    );
  });

  it("names the file that can't be read", () => {
    expect(() => loadPrimaryConfig({ config: "/nowhere.yaml" }, environment)).to.throw(
      ConfigError,
      '--config: can\'t read "/nowhere.yaml": ENOENT',
    );
  });

  it("takes a file in which everything is commented out for one without options", () => {
    const config = file("# size: 4096\n");
    const { checkpointIntervalMs } = loadPrimaryConfig({ config, disk: ["a=/x"] }, environment);
    expect(checkpointIntervalMs).to.equal(
      loadPrimaryConfig({ disk: ["a=/x"] }, environment).checkpointIntervalMs,
    );
  });

  const badFiles: readonly (readonly [text: string, message: string])[] = [
    ["dsik: a=/x\n", 'unknown key "dsik"'],
    ["view: h:1\n", 'unknown key "view"'],
    ["config: x\n", 'unknown key "config"'],
    ["size: 12Q\ndisk: a=/x\n", 'size: "12Q" is not a size'],
    ["size: {a: 1}\n", "size: must be a value or a list of values"],
    ["disk: [[a=/x]]\n", "disk: must be a value or a list of values"],
    ["disk: []\n", "disk: must be a value or a list of values"],
    ["- a\n", 'must hold options as "name: value" lines'],
    ["size: &s 1G\nresync-rate: *s\n", "Alias"],
    ["a: [\n", "at line 2, column 1"],
    ["size: 1G\nsize: 2G\n", "Map keys must be unique"],
  ];
  for (const [text, message] of badFiles) {
    it(`names the file that holds ${JSON.stringify(text)}`, () => {
      const config = file(text);
      const error = expect(() => loadPrimaryConfig({ config }, environment)).to.throw(ConfigError);
      error.with
        .property("message")
        .that.includes(`${config}: `)
        .and.includes(message)
        .and.not.includes("\n");
    });
  }
});

/** Mistakes on the command line, as the program's user meets them: nothing is begun, nothing is made. */
import { expect } from "chai";
import { writeFile } from "node:fs/promises";

import type { NodeRole } from "../../src/status.js";
import { runNode } from "../tools/node-process.js";
import { Exit, expectRefusal } from "../tools/refusal.js";
import { snapshot } from "../tools/snapshot.js";
import { useWorkspace } from "../tools/workspace.js";

/** Options, and the part of the complaint that says what is wrong; DIR is the test's directory. */
const MISTAKES: readonly (readonly [NodeRole, options: string, message: string])[] = [
  ["primary", "--size 64M", "no disk given: use --disk NAME=PATH"],
  ["primary", "--disk DIR/disk.img", "is not NAME=PATH"],
  ["primary", "--disk disk0=", "lacks the path"],
  ["primary", "--disk a/b=DIR/new.img --size 1M", '"a/b" can\'t name a disk'],
  ["primary", "--disk a=DIR/x.img --disk a=DIR/y.img --size 1M", 'two disks are named "a"'],
  ["primary", "--disk a=DIR/x.img --disk b=DIR/x.img --size 1M", "two disks are kept in"],
  ["primary", "--disk a=DIR/x.img --disk b=DIR/./x.img --size 1M", "two disks are kept in"],
  ["primary", "--disk a=DIR/x.img --size 1GB", '--size: "1GB" is not a size'],
  ["primary", "--disk a=DIR/x.img --size -5", '--size: "-5" is not a size'],
  ["primary", "--disk a=DIR/x.img --size 0", "--size: \"0\" can't be a disk's size"],
  ["primary", "--disk a=DIR/x.img --size 1000", "use a multiple of 512 bytes"],
  ["primary", "--disk a=DIR/x.img --size 9999999P", "is too large"],
  ["primary", "--disk a=DIR/x.img --size 1M --listen 10809", '--listen: "10809" is not an address'],
  ["primary", "--disk a=DIR/x.img --size 1M --listen localhost:99999", "is not an address"],
  ["primary", "--disk a=DIR/x.img --size 1M --listen ::1:10809", "use HOST:PORT, [V6]:PORT or unix:PATH"],
  ["primary", "--disk a=DIR/x.img --size 1M --listen unix:", "a path must follow unix:"],
  [
    "primary",
    `--disk a=DIR/x.img --size 1M --listen unix:DIR/${"s".repeat(108)}`,
    "longer than the kernel's",
  ],
  ["primary", "--disk a=DIR/x.img --size 1M --listen :1 --listen :1", "--listen"],
  ["primary", "--disk a=DIR/x.img --size 1M --replica secondary:10809", "--replica:"],
  ["primary", "--disk a=DIR/x.img --size 1M --replica http://secondary", "--replica:"],
  ["primary", "--disk a=DIR/x.img --size 1M --tls require", "needs --tls-certificates DIR or --tls-psk FILE"],
  ["primary", "--disk a=DIR/x.img --size 1M --tls-certificates DIR/none", "server-cert.pem is missing"],
  [
    "primary",
    "--disk a=DIR/x.img --size 1M --replica nbds://secondary?tls-certificates=DIR/none",
    "ca-cert.pem is missing",
  ],
  ["primary", "--disk a=DIR/x.img --size 1M --replica nbd://secondary/disk0", 'leave out "disk0"'],
  ["primary", "--disk a=DIR/x.img --size 1M --replica-qmp tcp:secondary:1", "needs --replica"],
  ["primary", "--disk a=DIR/x.img --size 1M --checkpoint-interval 5", '"5" is not a time'],
  [
    "primary",
    "--disk a=DIR/x.img --size 1M --replica nbd://s --checkpoint-interval 5s",
    "needs --replica-qmp",
  ],
  ["primary", "--disk a=DIR/x.img --size 1M --ack-mode quick", "is not one of async, memsync, sync"],
  ["primary", "--disk a=DIR/x.img --size 1M --replica-timeout 5ms", "must be at least 100ms"],
  ["primary", "--disk a=DIR/x.img --size 1M --resync-rate fast", '"fast" is not a rate'],
  ["primary", "--disk a=DIR/x.img --size 1M --view 127.0.0.1:0", "unknown option --view"],
  ["primary", "--disk a=DIR/x.img --size 1M failover", 'unknown argument "failover"'],
  ["secondary", "--disk a=DIR/x.img --size 1M --listen none --listen 127.0.0.1:0", "can't be combined"],
  ["secondary", "--disk a=DIR/x.img --size 1M --view unix:DIR/s --listen unix:DIR/s", "two listeners"],
  ["secondary", "--disk a=DIR/x.img --size 1M --view unix:DIR/state/qmp.sock", "two listeners"],
  ["secondary", "--disk a=DIR/x.img --size 1M --on-undo-error ignore", "is not one of break-checkpoint"],
  ["secondary", "--disk a=DIR/x.img --size 1M --replica nbd://primary", "unknown option --replica"],
  ["secondary", "--disk a=nbd+unix:///x --size 1M", "--disk:"],
  ["secondary", "--disk a=nbds://host/x?tls-type=psk", "add tls-psk-file"],
  ["secondary", "--disk a=DIR/x.img --size 1M --tls-psk DIR/none", "can't be read"],
  ["secondary", "--config DIR/nonesuch.yaml", "can't read"],
  ["secondary", "--config DIR/bad.yaml", "bad.yaml"],
  ["secondary", "--disk a=DIR/x.img --size 1M --log-level loud", "is not one of error"],
];

/** Programs run at a time. */
const AT_ONCE = 4;

describe("mistakes on the command line", () => {
  const workspace = useWorkspace();

  it(`each of ${MISTAKES.length} costs exit code 2, one line that names it, and not one file`, async () => {
    await writeFile(workspace.path("bad.yaml"), "disk: [a=/a\nsize: {\n");
    const before = await snapshot(workspace.directory);
    const expectMistake = async ([role, options, message]: (typeof MISTAKES)[number]): Promise<void> => {
      const given = options.replaceAll("DIR", workspace.directory).split(" ");
      const outcome = await runNode(role, [...given, "--state-dir", workspace.path("state")]);
      expectRefusal(outcome, Exit.Usage, message);
      expect(await snapshot(workspace.directory), options).to.deep.equal(before);
    };
    for (let at = 0; at < MISTAKES.length; at += AT_ONCE) {
      await Promise.all(MISTAKES.slice(at, at + AT_ONCE).map(expectMistake));
    }
  });
});

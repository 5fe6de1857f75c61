/** Whole guests: what a guest was told is on its disk, a guest that boots on the other host finds there. */
import { expect } from "chai";
import { readFile } from "node:fs/promises";

import { Authority } from "../tools/certificates.js";
import { useGuests } from "../tools/guest/guest.js";
import { type GuestDisk, kernelNbdDisk, virtioDisk } from "../tools/guest/guest-disk.js";
import { type Pair, startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

/** Enough for several transactions of the journal. */
const RECORDS = 30;

/** Where a guest finds the certificate of the CA. */
const CA_PATH = "pki/ca-cert.pem";

interface Attachment {
  readonly name: string;
  readonly tls?: true;
  readonly guestDisk: (pair: Pair) => Promise<GuestDisk>;
  readonly viewDisk: (pair: Pair) => Promise<GuestDisk>;
}

/** TLS or nothing, with a server that the CA knows by this name. */
const TLS_OPTIONS = ["-enable-tls", "-cacertfile", `/${CA_PATH}`, "-tlshostname", "localhost"];

const ATTACHMENTS: readonly Attachment[] = [
  {
    name: "virtio-blk on QEMU's NBD client",
    guestDisk: (pair) => Promise.resolve(virtioDisk(pair.primaryUri())),
    viewDisk: (pair) => Promise.resolve(virtioDisk(pair.viewUri())),
  },
  {
    name: "the guest kernel's own nbd-client",
    guestDisk: async (pair) => kernelNbdDisk(await pair.primary.tcpAddress("guest")),
    viewDisk: async (pair) => kernelNbdDisk(await pair.secondary.tcpAddress("view")),
  },
  {
    name: "the guest kernel's own nbd-client over TLS",
    tls: true,
    guestDisk: async (pair) => kernelNbdDisk(await pair.primary.tcpAddress("guest"), ...TLS_OPTIONS),
    viewDisk: async (pair) => kernelNbdDisk(await pair.secondary.tcpAddress("view"), ...TLS_OPTIONS),
  },
];

describe("a whole guest whose primary is killed", () => {
  const workspace = useWorkspace();
  let authority: Authority;
  before(async () => {
    authority = await Authority.make();
  });
  const guests = useGuests(workspace, async () => [
    { path: CA_PATH, content: await readFile(authority.caFile) },
  ]);
  after(() => authority.close());

  for (const { name, tls, guestDisk, viewDisk } of ATTACHMENTS) {
    for (const to of ["checkpoint", "latest"] as const) {
      it(`${name}: after a failover to ${to} the journal is replayed, the file system clean, the records there`, async () => {
        const certificates = await authority.issue({ server: {} });
        const secured = tls === true ? ["--tls", "on", "--tls-certificates", certificates] : [];
        const views = ["--view", `unix:${workspace.path("secondary/view.sock")}`, "--view", "127.0.0.1:0"];
        const pair = await startPair(workspace, {
          primary: ["--listen", "127.0.0.1:0", ...secured],
          secondary: [...views, ...secured],
        });
        const first = await guests.start({ name: "first", job: "append", disk: await guestDisk(pair) });
        await first.goesOn(RECORDS);
        const { clients } = await pair.primary.status();
        const [version = null] = clients.map((client) => client.tls?.version ?? null);
        expect([clients.length, version]).to.deep.equal([1, tls === true ? "TLSv1.2" : null]);
        const before = first.lastAcknowledged;
        await pair.checkpoint();
        const after = first.lastAcknowledged;
        await first.goesOn(RECORDS);
        await pair.primary.process.kill();
        expect(await first.failure(), "the guest's error").to.match(/^record \d+: /);
        const { lastAcknowledged } = first;
        await pair.failOver("--to", to);

        const second = await guests.start({ name: "second", job: "recover", disk: await viewDisk(pair) });
        const records = await second.recovered();
        // What the guest says may be read late, but not by half of what it went on to write.
        const [least, most] =
          to === "latest" ? [lastAcknowledged, lastAcknowledged + 1] : [before, after + RECORDS / 2];
        expect(records.length).to.be.within(least, most);
      });
    }
  }
});

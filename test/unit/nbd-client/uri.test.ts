import { expect } from "chai";

import fc from "fast-check";

import { ConfigError } from "../../../src/errors.js";
import { formatNbdUri, parseNbdUri } from "../../../src/nbd/uri.js";
import type { NbdUri } from "../../../src/nbd/uri.js";

function uri(parts: Partial<NbdUri>): NbdUri {
  return {
    address: { kind: "tcp", host: "example.com", port: 10809 },
    exportName: "",
    tls: false,
    tlsParameters: {},
    ...parts,
  };
}

const sock = { kind: "unix", path: "sock" } as const;

describe("parseNbdUri", () => {
  const accepted: [string, NbdUri][] = [
    // The examples of doc/uri.md.
    ["nbd://example.com/disk", uri({ exportName: "disk" })],
    ["nbd+unix:///disk?socket=sock", uri({ address: sock, exportName: "disk" })],
    ["nbd://example.com/", uri({})],
    ["nbd://example.com", uri({})],
    ["nbd://example.com//disk", uri({ exportName: "/disk" })],
    ["nbd://example.com/hello%20world", uri({ exportName: "hello world" })],
    // RFC 3986: nothing in a path is normalised away, "+" is no space, a scheme has no case.
    ["nbd://example.com/a/../b", uri({ exportName: "a/../b" })],
    ["nbd://example.com/a+b%2Bc", uri({ exportName: "a+b+c" })],
    ["nbd://example.com/%E2%82%AC%23", uri({ exportName: "€#" })],
    ["NBD://example.com/disk", uri({ exportName: "disk" })],
    ["nbd://example.com:/disk", uri({ exportName: "disk" })],
    ["nbd://example.com?", uri({})],
    [
      "nbd://10.0.0.7:10999/d",
      uri({ address: { kind: "tcp", host: "10.0.0.7", port: 10999 }, exportName: "d" }),
    ],
    ["nbd://[::1]:1/d", uri({ address: { kind: "tcp", host: "::1", port: 1 }, exportName: "d" })],
    ["nbd://[fe80::1%25eth0]/", uri({ address: { kind: "tcp", host: "fe80::1%eth0", port: 10809 } })],
    ["nbd+unix:/d?socket=sock", uri({ address: sock, exportName: "d" })],
    ["nbd+unix:?socket=sock", uri({ address: sock })],
    ["nbd+unix://?socket=/a%20b%26c", uri({ address: { kind: "unix", path: "/a b&c" } })],
    ["nbds://example.com/d", uri({ exportName: "d", tls: true })],
    [
      "nbds+unix://alice@/?socket=sock",
      uri({ address: sock, tls: true, tlsParameters: { username: "alice" } }),
    ],
    [
      "nbds://al%40ice@example.com/d?tls-type=psk&tls-psk-file=/k&tls-verify-peer=0",
      uri({
        exportName: "d",
        tls: true,
        tlsParameters: { username: "al@ice", type: "psk", pskFile: "/k", verifyPeer: false },
      }),
    ],
    [
      "nbds+unix:///?socket=sock&tls-type=x509&tls-hostname=h&tls-verify-peer=1&tls-certificates=/pki",
      uri({
        address: sock,
        tls: true,
        tlsParameters: { type: "x509", hostname: "h", verifyPeer: true, certificates: "/pki" },
      }),
    ],
  ];
  for (const [text, expected] of accepted) {
    it(`reads ${text}`, () => {
      expect(parseNbdUri(text)).to.deep.equal(expected);
    });
  }

  const refused: [string, string][] = [
    ["", "not a URI"],
    ["example.com:10809/disk", "scheme"],
    ["/dev/sda", "not a URI"],
    ["http://example.com/", 'the scheme "http"'],
    ["nbd+ssh://example.com/", 'the scheme "nbd+ssh"'],
    ["nbd+vsock://2:10809/", "vsock is not supported"],
    ["nbds+vsock:///", "vsock is not supported"],
    ["nbd:///disk", "host is missing"],
    ["nbd:disk", "host is missing"],
    ["nbd://:10809/disk", "host is missing"],
    ["nbd://host:65536/", "65536"],
    ["nbd://host:0/", "1 to 65535"],
    ["nbd://host:1x/", "is not a host"],
    ["nbd://::1/", "[V6]:PORT"],
    ["nbd://[::1/", "is not a host"],
    ["nbd://host/a#b", "%23"],
    ["nbd://host/%zz", "%25"],
    ["nbd://host/%ff", "UTF-8"],
    ["nbd://host/a%00b", "NUL"],
    [`nbd://host/${"x".repeat(4097)}`, "4096 bytes"],
    ["nbd://host/?socket=/s", "nbd+unix"],
    ["nbd+unix:///disk", "socket is missing"],
    ["nbd+unix:///disk?socket=", "a path must follow"],
    ["nbd+unix:///?socket=%00/abstract", "abstract"],
    [`nbd+unix:///?socket=/${"s".repeat(107)}`, "107 bytes"],
    ["nbd+unix://run/nbd.sock?socket=s", "three slashes"],
    ["nbd://host/?export=disk", '"export" is unknown'],
    ["nbd://host/?x-mine=1", '"x-mine" is unknown'],
    ["nbd://host/?tls-type", "NAME=VALUE"],
    ["nbd://host/?tls-type=psk&tls-type=psk", "given twice"],
    ["nbds://host/?tls-type=md5", "anon, x509, psk"],
    ["nbds://alice@host/?tls-username=bob", 'tls-username is "bob"'],
    ["nbds://host/?tls-verify-peer=yes", "0 or 1"],
  ];
  for (const [text, reason] of refused) {
    it(`refuses ${text.length > 60 ? `${text.slice(0, 40)}...` : `"${text}"`}, says why and names it`, () => {
      expect(() => parseNbdUri(text))
        .to.throw(ConfigError)
        .that.satisfies(
          (error: ConfigError) => error.message.includes(reason) && error.message.includes(text),
        );
    });
  }
});

describe("formatNbdUri", () => {
  it("writes what a person would write", () => {
    expect(formatNbdUri(uri({ exportName: "a/b c" }))).to.equal("nbd://example.com:10809/a/b%20c");
    expect(
      formatNbdUri(uri({ address: { kind: "unix", path: "/run/x.sock" }, exportName: "d", tls: true })),
    ).to.equal("nbds+unix:///d?socket=/run/x.sock");
  });

  it("writes what parseNbdUri reads back, whatever the parts hold", () => {
    const text = fc.string({ unit: "grapheme", maxLength: 20 }).filter((s) => !s.includes("\0"));
    const path = text.filter((s) => s !== "" && Buffer.byteLength(s) <= 107);
    const host = fc.oneof(fc.domain(), fc.ipV4(), fc.ipV6(), fc.constant("fe80::1%eth0"));
    const address = fc.oneof(
      fc.record({ kind: fc.constant("tcp" as const), host, port: fc.integer({ min: 1, max: 65535 }) }),
      fc.record({ kind: fc.constant("unix" as const), path }),
    );
    const tlsParameters = fc.record(
      {
        username: text.filter((s) => s !== ""),
        type: fc.constantFrom("anon" as const, "x509" as const, "psk" as const),
        hostname: text,
        verifyPeer: fc.boolean(),
        certificates: text,
        pskFile: text,
      },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(fc.record({ address, exportName: text, tls: fc.boolean(), tlsParameters }), (parts) => {
        expect(parseNbdUri(formatNbdUri(parts))).to.deep.equal(parts);
      }),
    );
  });
});

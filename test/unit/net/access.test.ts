/** Who may connect: networks, owners of sockets, sockets from systemd. */
import { expect } from "chai";

import { ConfigError } from "../../../src/errors.js";
import { parseOwner } from "../../../src/net/owner.js";
import { PeerFilter } from "../../../src/net/peer-filter.js";
import { inheritedSockets } from "../../../src/os/socket-activation.js";

describe("PeerFilter", () => {
  const filter = new PeerFilter(["192.0.2.0/24", "198.51.100.7", "2001:db8::/32", "fe80::1"]);

  for (const host of [
    "192.0.2.1",
    "192.0.2.255",
    "::ffff:192.0.2.9",
    "198.51.100.7",
    "2001:db8:1::9",
    "fe80::1",
  ]) {
    it(`lets ${host} in`, () => {
      expect(filter.admits(host)).to.equal(true);
    });
  }

  for (const host of [
    "192.0.3.1",
    "::ffff:192.0.3.1",
    "198.51.100.8",
    "2001:db9::1",
    "fe80::2",
    "127.0.0.1",
    "::1",
  ]) {
    it(`keeps ${host} out`, () => {
      expect(filter.admits(host)).to.equal(false);
    });
  }

  it("lets every address of a family in by a prefix of no bits, and none of the other", () => {
    expect(new PeerFilter(["0.0.0.0/0"]).admits("203.0.113.5")).to.equal(true);
    expect(new PeerFilter(["0.0.0.0/0"]).admits("2001:db8::1")).to.equal(false);
  });

  for (const text of [
    "",
    "192.0.2.0/33",
    "192.0.2/24",
    "2001:db8::/129",
    "host/8",
    "192.0.2.1/",
    "192.0.2.1/8/8",
    "::/x",
  ]) {
    it(`refuses "${text}"`, () => {
      expect(() => new PeerFilter([text])).to.throw(ConfigError, `"${text}" is not a network`);
    });
  }
});

describe("parseOwner", () => {
  it("takes names and numbers, and leaves what is not said", () => {
    expect(parseOwner("root")).to.deep.equal({ user: 0, group: -1 });
    expect(parseOwner("root:root")).to.deep.equal({ user: 0, group: 0 });
    expect(parseOwner(":107")).to.deep.equal({ user: -1, group: 107 });
    expect(parseOwner("64055:107")).to.deep.equal({ user: 64055, group: 107 });
  });

  for (const [text, message] of [
    ["", "is not an owner"],
    [":", "is not an owner"],
    ["a:b:c", "is not an owner"],
    ["no-such-user", 'there is no user "no-such-user"'],
    [":no-such-group", 'there is no group "no-such-group"'],
    // To chown(2) that is: leave it as it is.
    ["4294967295", 'there is no user "4294967295"'],
    [":4294967295", 'there is no group "4294967295"'],
  ] as const) {
    it(`refuses "${text}"`, () => {
      expect(() => parseOwner(text)).to.throw(ConfigError, message);
    });
  }
});

describe("inheritedSockets", () => {
  it("finds the sockets that are for this process, with their names", () => {
    expect(
      inheritedSockets({ LISTEN_PID: "7", LISTEN_FDS: "2", LISTEN_FDNAMES: "guests:more" }, 7),
    ).to.deep.equal([
      { fd: 3, name: "guests" },
      { fd: 4, name: "more" },
    ]);
    expect(inheritedSockets({ LISTEN_PID: "7", LISTEN_FDS: "1" }, 7)).to.deep.equal([
      { fd: 3, name: "unknown" },
    ]);
  });

  it("takes none that are for another process", () => {
    expect(inheritedSockets({ LISTEN_PID: "8", LISTEN_FDS: "2" }, 7)).to.deep.equal([]);
    expect(inheritedSockets({ LISTEN_FDS: "2" }, 7)).to.deep.equal([]);
    expect(inheritedSockets({}, 7)).to.deep.equal([]);
  });

  it("refuses numbers and names that can't be", () => {
    for (const environment of [
      { LISTEN_FDS: "65" },
      { LISTEN_FDS: "-1" },
      { LISTEN_FDS: "2", LISTEN_FDNAMES: "a" },
    ]) {
      expect(() => inheritedSockets({ LISTEN_PID: "7", ...environment }, 7)).to.throw(ConfigError);
    }
  });
});

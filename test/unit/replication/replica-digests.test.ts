/** How a secondary is asked for digests. */
import { expect } from "chai";

import { Deferred } from "../../../src/deferred.js";
import { LinkError, UnreachableError } from "../../../src/errors.js";
import type { DigestRequest } from "../../../src/replication/digest.js";
import { ReplicaDigests } from "../../../src/replication/primary/replica-digests.js";
import type { CommandConnection } from "../../../src/replication/primary/replica-network.js";
import { failureOf, turns } from "../../tools/outcome.js";

const KIBIBYTE = 1024;

describe("ReplicaDigests", () => {
  let asked: DigestRequest[];
  let connections: number;
  let isClosed: boolean;

  /** One whose digests tell disk and offset. */
  const connection: CommandConnection = {
    execute: (_command, args) => {
      const request = args as DigestRequest;
      asked.push(request);
      const digests = request.ranges.map(({ offset, length }) =>
        Array.from(
          { length: length / request.block },
          (_, block) => `${request.disk}@${offset + block * request.block}`,
        ),
      );
      return Promise.resolve({ digests });
    },
    close: () => {
      isClosed = true;
      return Promise.resolve();
    },
  };

  const digestsOver = (connect: () => Promise<CommandConnection>): ReplicaDigests =>
    new ReplicaDigests(
      {
        commands: () => {
          connections++;
          return connect();
        },
      },
      { kind: "unix", path: "/nowhere" },
      1000,
      "session",
    );

  beforeEach(() => {
    asked = [];
    connections = 0;
    isClosed = false;
  });

  it("asks over one connection, made at the first question, whatever the disk", async () => {
    const digests = digestsOver(() => Promise.resolve(connection));
    expect(connections).to.equal(0);
    const answers = await Promise.all(
      ["a", "b", "a"].map((disk, index) =>
        digests.of(disk, index * 64 * KIBIBYTE, 8 * KIBIBYTE, 4 * KIBIBYTE),
      ),
    );
    expect(answers).to.deep.equal([
      ["a@0", "a@4096"],
      ["b@65536", "b@69632"],
      ["a@131072", "a@135168"],
    ]);
    expect(connections).to.equal(1);
  });

  it("asks for what has come meanwhile in one command, as far as it is of one disk, its blocks of one size, and 4 MiB", async () => {
    const held = new Deferred<undefined>();
    const slow: CommandConnection = {
      ...connection,
      execute: (command, args) => {
        const answer = connection.execute(command, args);
        return held.promise.then(() => answer);
      },
    };
    const digests = digestsOver(() => Promise.resolve(slow));
    const ask = (disk: string, offset: number, block = 64 * KIBIBYTE): Promise<readonly string[]> =>
      digests.of(disk, offset * KIBIBYTE * KIBIBYTE, KIBIBYTE * KIBIBYTE, block);
    // The first two go by themselves.
    const questions = [
      ...[ask("a", 0), ask("a", 1)],
      ...[ask("a", 2), ask("a", 3), ask("a", 4), ask("a", 5), ask("a", 6)],
      ...[ask("b", 7), ask("b", 8, 4 * KIBIBYTE)],
    ];
    held.resolve(undefined);
    await Promise.all(questions);
    expect(
      asked.map(({ disk, block, ranges }) => [
        disk,
        block / KIBIBYTE,
        ranges.map(({ offset }) => offset >> 20),
      ]),
    ).to.deep.equal([
      ["a", 64, [0]],
      ["a", 64, [1]],
      ["a", 64, [2, 3, 4, 5]],
      ["a", 64, [6]],
      ["b", 64, [7]],
      ["b", 4, [8]],
    ]);
  });

  it("is closed at once, while it connects, too: what is asked rejects, and the connection is closed when it is there", async () => {
    const made = new Deferred<CommandConnection>();
    const digests = digestsOver(() => made.promise);
    const questions = [
      digests.of("a", 0, 4096, 4096),
      digests.of("b", 0, 4096, 4096),
      digests.of("a", 0, 4096, 4096),
    ];
    await turns();
    digests.close();
    for (const question of questions) {
      expect(await failureOf(question))
        .to.be.instanceOf(LinkError)
        .with.property("code", "closed");
    }
    expect(isClosed).to.equal(false);
    made.resolve(connection);
    await turns();
    expect(isClosed).to.equal(true);
    expect((await failureOf(digests.of("a", 0, 4096, 4096))).message).to.equal("the connection was closed");
    expect(connections).to.equal(1);
  });

  it("rejects what can't be asked, if there is no connection, and what is asked later", async () => {
    const digests = digestsOver(() => Promise.reject(new LinkError("connection-lost", "nobody there")));
    for (let question = 0; question < 2; question++) {
      expect((await failureOf(digests.of("a", 0, 4096, 4096))).message).to.equal("nobody there");
    }
    expect(connections).to.equal(1);
  });

  it("asks nothing more once an answer stays out: what the other disks ask fails with it, for each would wait as long", async () => {
    const late = new Deferred<never>();
    let commands = 0;
    let isClosed = false;
    const connection = {
      execute: () => {
        commands++;
        return isClosed ? Promise.reject(new LinkError("connection-lost", "it has ended")) : late.promise;
      },
      close: () => {
        isClosed = true;
        return Promise.resolve();
      },
    };
    const digests = new ReplicaDigests(
      { commands: () => Promise.resolve(connection) },
      { kind: "unix", path: "/nowhere" },
      1000,
      "session",
    );
    const asked = ["a", "b", "c", "d", "e"].map((disk) => failureOf(digests.of(disk, 0, 4096, 4096)));
    await turns();
    late.reject(new LinkError("timeout", "did not answer"));
    const failures = await Promise.all(asked);
    expect(failures.map(({ message }) => message)).to.deep.equal(Array(5).fill("did not answer"));
    expect(commands).to.equal(2);
    await turns();
    expect(isClosed).to.equal(true);
    expect(await failureOf(digests.of("a", 0, 4096, 4096))).to.be.instanceOf(LinkError);
  });

  it("waits for no connection once it is closed", async () => {
    const connecting = new Deferred<never>();
    const digests = new ReplicaDigests(
      {
        commands: (_address, _timeoutMs, signal) => {
          signal.addEventListener("abort", () => {
            connecting.reject(new UnreachableError("unreachable", "aborted"));
          });
          return connecting.promise;
        },
      },
      { kind: "unix", path: "/nowhere" },
      1000,
      "session",
    );
    const asked = failureOf(digests.of("a", 0, 4096, 4096));
    digests.close();
    expect(await asked).to.have.property("code", "closed");
    expect(await failureOf(connecting.promise)).to.have.property("message", "aborted");
  });
});

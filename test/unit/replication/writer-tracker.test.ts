import { expect } from "chai";

import type { ConnectionObserver, ConnectionSummary } from "../../../src/nbd/server/exports.js";
import { WriterTracker } from "../../../src/replication/secondary/writer-tracker.js";

const PEER = "192.0.2.1:1000";
const RECONNECTED = "the primary has reconnected and its resync is not finished";

function summary(change: Partial<ConnectionSummary> = {}): ConnectionSummary {
  return { peer: PEER, clean: true, unansweredWrites: 0, reads: 0, writes: 5, failedWrites: 0, ...change };
}

describe("WriterTracker", () => {
  let tracker: WriterTracker;
  let changes: number;
  let isReserved: boolean;

  beforeEach(() => {
    changes = 0;
    isReserved = false;
    tracker = new WriterTracker(
      { gap: null, cutOff: null },
      () => isReserved,
      () => changes++,
    );
  });

  /** A connection that has written. @param isOfSession whether of the primary that introduced itself */
  function connect(isOfSession = false): ConnectionObserver {
    const observer = tracker.observe(PEER, isOfSession);
    expect(observer.firstWrite?.()).to.equal(null);
    return observer;
  }

  function restarted(gap: string | null): WriterTracker {
    return new WriterTracker(
      { gap, cutOff: null },
      () => isReserved,
      () => undefined,
    );
  }

  it("tells of each change, so that it can be recorded", () => {
    tracker.begin();
    const before = changes;
    tracker.writeFailed("lost");
    expect(changes).to.equal(before + 1);
  });

  describe("before replication is started", () => {
    it("sees no gap, whatever a writer does", () => {
      connect().closed?.(summary({ unansweredWrites: 3, clean: false }));
      connect();
      tracker.writeFailed("lost");
      tracker.introduce("one", "writer of one");
      expect(tracker.gap).to.equal(null);
    });

    it("keeps what is known from before a restart, until replication is started anew", () => {
      tracker = restarted("from before");
      tracker.resume();
      expect(tracker.gap).to.equal("from before");
      connect();
      tracker.introduce("one", "writer of one");
      expect(tracker.gap, "the first reason stays").to.equal("from before");
      tracker.begin();
      expect(tracker.gap).to.equal(null);
    });

    it("takes the word of a session that finishes the first copy", () => {
      tracker.introduce("one", "writer of one");
      expect([tracker.session, tracker.resynced("one"), tracker.gap]).to.deep.equal(["one", true, null]);
    });

    it("does not take the word of one whose connection was lost meanwhile", () => {
      tracker.introduce("one", "writer of one");
      connect(true).closed?.(summary({ clean: false, unansweredWrites: 1 }));
      expect(tracker.resynced("one")).to.equal(false);
    });
  });

  describe("while a writer that never introduced itself replicates", () => {
    beforeEach(() => {
      tracker.begin();
    });

    it("sees no gap while it writes, nor when it goes with all answered", () => {
      connect().closed?.(summary());
      expect(tracker.gap).to.equal(null);
    });

    it("tells that it was cut off, which is no gap, until replication is started anew", () => {
      connect().closed?.(summary({ clean: false }));
      expect(tracker.gap).to.equal(null);
      expect(tracker.cutOff).to.match(/^writer 192\.0\.2\.1:1000 went away without NBD_CMD_DISC/);
      connect().closed?.(summary());
      expect(tracker.cutOff, "another one's leave mends nothing").to.be.a("string");
      tracker.begin();
      expect(tracker.cutOff).to.equal(null);
    });

    it("sees a gap when it goes with requests unanswered", () => {
      connect().closed?.(summary({ unansweredWrites: 3, failedWrites: 1 }));
      expect(tracker.gap).to.equal(`writer ${PEER} went away with 3 requests unanswered`);
    });

    it("sees a gap when it goes after writes of its were refused", () => {
      connect().closed?.(summary({ failedWrites: 2 }));
      expect(tracker.gap).to.equal(`2 writes of ${PEER} were refused`);
    });

    it("does not mind one whose requests were never to be carried out", () => {
      // Of length 0, or past the end.
      tracker.observe("stranger", false).closed?.(summary({ clean: false, failedWrites: 2 }));
      connect();
      expect([tracker.gap, tracker.cutOff]).to.deep.equal([null, null]);
    });

    it("sees a gap when one comes back, as soon as it writes", () => {
      connect().closed?.(summary());
      const observer = tracker.observe(PEER, false);
      expect(tracker.gap).to.equal(null);
      observer.firstWrite?.();
      expect(tracker.gap).to.equal(`writer ${PEER} came back without a resync`);
    });

    it("sees no gap in a second connection beside the first", () => {
      const [first, second] = [connect(), connect()];
      first.closed?.(summary());
      expect(tracker.gap).to.equal(null);
      second.closed?.(summary({ unansweredWrites: 1 }));
      expect(tracker.gap).to.equal(`writer ${PEER} went away with 1 requests unanswered`);
    });

    it("does not mind readers that come and go, however they go", () => {
      const reader = tracker.observe(PEER, false);
      reader.closed?.(summary({ reads: 1, writes: 0, clean: false }));
      tracker.observe(PEER, false).closed?.(summary({ writes: 0 }));
      connect();
      expect([tracker.gap, tracker.cutOff]).to.deep.equal([null, null]);
    });

    it("takes one that was cut off before anything of it arrived for a writer whose first writes were lost", () => {
      tracker.observe(PEER, false).closed?.(summary({ writes: 0, clean: false }));
      expect(tracker.cutOff).to.match(/^writer 192\.0\.2\.1:1000 went away without NBD_CMD_DISC/);
      connect();
      expect(tracker.gap).to.equal(`writer ${PEER} came back without a resync`);
      tracker.begin();
      expect([tracker.gap, tracker.cutOff]).to.deep.equal([null, null]);
    });

    it("sees a gap when a write fails here, and keeps the first reason", () => {
      tracker.writeFailed("the first");
      tracker.writeFailed("the second");
      connect().closed?.(summary({ unansweredWrites: 3 }));
      expect(tracker.gap).to.equal("the first");
    });

    it("takes nobody's word for a gap but that of a session", () => {
      tracker.writeFailed("lost");
      expect(tracker.resynced("stranger")).to.equal(false);
      expect(tracker.gap).to.equal("lost");
    });

    it("sees a gap after a restart in the middle of an epoch, as soon as one writes", () => {
      tracker = restarted(null);
      tracker.resume();
      expect(tracker.gap).to.equal(null);
      connect();
      expect(tracker.gap).to.equal(`writer ${PEER} came back without a resync`);
    });
  });

  describe("while a session replicates", () => {
    let connection: ConnectionObserver;

    beforeEach(() => {
      tracker.introduce("one", "writer of one");
      tracker.begin();
      connection = connect(true);
    });

    it("sees a gap from its handshake on, until it says that the resync is done", () => {
      tracker.introduce("one", "writer of one");
      connect(true);
      expect(tracker.gap).to.equal(RECONNECTED);
      expect([tracker.resynced("one"), tracker.gap]).to.deep.equal([true, null]);
    });

    it("takes no word of a session once a connection of its was lost, even with all answered", () => {
      connection.closed?.(summary());
      expect([tracker.session, tracker.resynced("one"), tracker.gap]).to.deep.equal([null, false, null]);
    });

    it("is mended by its resync after one of its connections was cut off", () => {
      connection.closed?.(summary({ clean: false }));
      tracker.introduce("one", "writer of one");
      expect(tracker.cutOff, "until the resync is done").to.be.a("string");
      expect([tracker.resynced("one"), tracker.gap, tracker.cutOff]).to.deep.equal([true, null, null]);
    });

    it("sees a gap when one of its connections goes with requests unanswered, and mends it after a handshake", () => {
      connection.closed?.(summary({ unansweredWrites: 1 }));
      expect(tracker.gap).to.equal(`writer ${PEER} went away with 1 requests unanswered`);
      tracker.introduce("one", "writer of one");
      connect(true);
      expect(tracker.gap).to.equal(`writer ${PEER} went away with 1 requests unanswered`);
      expect([tracker.resynced("one"), tracker.gap]).to.deep.equal([true, null]);
    });

    it("does not hold connections that a handshake replaced against the session that made it", () => {
      tracker.introduce("one", "writer of one");
      connection.closed?.(summary({ unansweredWrites: 4 }));
      expect([tracker.session, tracker.gap]).to.deep.equal(["one", RECONNECTED]);
      expect(tracker.resynced("one")).to.equal(true);
    });

    it("takes no word of a session that another one has replaced", () => {
      tracker.introduce("other", "writer of other");
      expect([tracker.resynced("one"), tracker.gap]).to.deep.equal([false, RECONNECTED]);
      expect([tracker.resynced("other"), tracker.gap]).to.deep.equal([true, null]);
    });

    it("sees a gap when a replaced connection writes again after its session has gone", () => {
      connection.closed?.(summary());
      connect();
      expect(tracker.gap).to.equal(`writer ${PEER} came back without a resync`);
    });

    it("lets no reader, scanner or monitor cost the session its word", () => {
      tracker.observe("monitor", false).closed?.(summary({ peer: "monitor", writes: 0, clean: false }));
      expect([tracker.cutOff, tracker.session, tracker.resynced("one")]).to.deep.equal([null, "one", true]);
    });

    it("lets nobody write beside it, which costs it nothing", () => {
      const told: (string | null)[] = [];
      const intruder = tracker.observe("intruder", false, (refusal) => told.push(refusal));
      const reason = "a primary introduced itself, and nobody writes beside it";
      expect(intruder.firstWrite?.()).to.equal(reason);
      intruder.closed?.(summary({ peer: "intruder", clean: false, failedWrites: 5 }));
      expect(told).to.deep.equal([reason]);
      expect([tracker.gap, tracker.cutOff]).to.deep.equal([null, null]);
      expect([tracker.session, tracker.resynced("one")]).to.deep.equal(["one", true]);
    });

    it("is cost nothing by requests of others that would never be carried out", () => {
      // Of length 0, or past the end: they count as writes, and nobody asks whether they may.
      tracker
        .observe("intruder", false)
        .closed?.(summary({ peer: "intruder", clean: false, failedWrites: 1 }));
      expect([tracker.gap, tracker.cutOff, tracker.session]).to.deep.equal([null, null, "one"]);
      expect(tracker.observe("intruder", false).firstWrite?.()).to.match(/^a primary introduced itself/);
    });

    it("lets nobody write in its place as long as its replication goes on, connected or not, nor after a restart", () => {
      isReserved = true;
      const reason =
        /^a primary that introduced itself replicates to the secondary: that one has to attach with --replica-qmp; to let others write, stop that first \(QMP xen-set-replication, enable: false, primary: false\)$/;
      connection.closed?.(summary());
      const intruder = tracker.observe("intruder", false);
      expect(intruder.firstWrite?.()).to.match(reason);
      intruder.closed?.(summary({ peer: "intruder", clean: false, failedWrites: 5 }));
      expect([tracker.gap, tracker.cutOff]).to.deep.equal([null, null]);
      tracker.introduce("one", "writer of one");
      expect(tracker.observe("intruder", false).firstWrite?.(), "before it has connected").to.match(reason);
      connect(true);
      expect([tracker.resynced("one"), tracker.gap]).to.deep.equal([true, null]);
      tracker = restarted(null);
      tracker.resume();
      expect(tracker.observe("intruder", false).firstWrite?.()).to.match(reason);
      expect(tracker.gap).to.equal(null);
    });

    it("lets nobody begin to write while a primary introduces itself", () => {
      const [own, other] = [tracker.observe(PEER, true), tracker.observe("intruder", false)];
      tracker.introductionBegins();
      connection.closed?.(summary());
      expect(own.firstWrite?.()).to.equal("the primary has to introduce itself again");
      own.closed?.(summary({ writes: 0 }));
      expect(other.firstWrite?.()).to.equal("a primary is introducing itself");
      tracker.introductionEnded();
      connect(false);
    });

    it("lets others write once it has gone and its replication is over, which nobody vouches for", () => {
      connection.closed?.(summary());
      connect(false);
      expect(tracker.gap).to.equal(`writer ${PEER} came back without a resync`);
    });

    it("lets nobody else write as long as one of its connections is there, of which it has lost another", () => {
      const [second, third] = [connect(true), tracker.observe(PEER, true)];
      connection.closed?.(summary());
      expect(tracker.session).to.equal(null);
      expect(third.firstWrite?.(), "one of its own").to.equal("the primary has to introduce itself again");
      for (const own of [second, third]) {
        expect(tracker.observe("intruder", false).firstWrite?.()).to.match(/^a primary introduced itself/);
        own.closed?.(summary());
      }
      connect(false);
    });

    it("lets nobody else write beside its connections after a manager's stop and start either", () => {
      tracker.end();
      tracker.begin();
      expect(tracker.observe("intruder", false).firstWrite?.()).to.match(/^a primary introduced itself/);
      connection.closed?.(summary());
      connect(false);
    });

    it("lets no connection write that it made before a handshake", () => {
      const late = tracker.observe(PEER, true);
      tracker.introduce("one", "another writer");
      expect(late.firstWrite?.()).to.equal("the primary has to introduce itself again");
      expect(tracker.session).to.equal("one");
    });

    it("tells who writes, or may: not who only reads", () => {
      tracker.observe("monitor", false);
      expect(tracker.peer).to.equal(PEER);
      connection.closed?.(summary());
      expect(tracker.peer).to.equal(null);
      const other = connect(false);
      expect(tracker.peer).to.equal(PEER);
      other.closed?.(summary());
      expect(tracker.peer).to.equal(null);
    });

    it("loses its word with a connection that wrote nothing", () => {
      tracker.observe(PEER, true).closed?.(summary({ writes: 0 }));
      expect([tracker.session, tracker.resynced("one"), tracker.gap]).to.deep.equal([null, false, null]);
    });

    it("forgets session and gap when replication ends", () => {
      tracker.writeFailed("lost");
      tracker.end();
      expect([tracker.session, tracker.gap]).to.deep.equal([null, null]);
      connection.closed?.(summary({ unansweredWrites: 1 }));
      expect(tracker.gap).to.equal(null);
    });
  });
});

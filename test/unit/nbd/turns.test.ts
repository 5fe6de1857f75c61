import { expect } from "chai";

import { ClientTurn, Turns } from "../../../src/nbd/server/turns.js";

describe("Turns", () => {
  let next: (() => void)[];
  let turns: Turns;
  let called: string[];

  const later = (name: string): void => {
    turns.later(() => called.push(name));
  };
  /** The end of a turn of the event loop. */
  const endTurn = (): void => {
    for (const callback of next.splice(0)) callback();
  };
  const client = (onTurn: () => void = () => undefined): ClientTurn => new ClientTurn(turns, onTurn);
  /** Requests without payload that a share takes before it is spent. */
  const requestsOf = (client: ClientTurn): number => {
    let count = 0;
    for (; !client.isSpent && count < 1000; count++) client.spend(0);
    return count;
  };

  beforeEach(() => {
    next = [];
    called = [];
    turns = new Turns((callback) => next.push(callback));
  });

  it("calls those who wait in order, one in each turn of the event loop", () => {
    for (const name of ["first", "second", "third"]) later(name);
    expect(called).to.deep.equal([]);
    endTurn();
    expect(called).to.deep.equal(["first"]);
    later("fourth");
    endTurn();
    endTurn();
    expect(called).to.deep.equal(["first", "second", "third"]);
    endTurn();
    expect(called).to.deep.equal(["first", "second", "third", "fourth"]);
    expect(next, "it leaves the event loop alone then").to.deep.equal([]);
  });

  it("puts who comes back behind all others", () => {
    const again = (): void => {
      called.push("again");
      if (called.length < 5) turns.later(again);
    };
    turns.later(again);
    later("other");
    for (let turn = 0; turn < 4; turn++) endTurn();
    expect(called).to.deep.equal(["again", "other", "again", "again"]);
  });

  it("gives everybody the same share of each turn", () => {
    const [one, other] = [client(), client()];
    const count = requestsOf(one);
    expect(count).to.be.within(32, 256);
    expect(one.isSpent).to.equal(true);
    expect(requestsOf(other)).to.equal(count);
    endTurn();
    expect(one.isSpent).to.equal(false);
    expect(requestsOf(one)).to.equal(count);
  });

  it("counts the bytes that a request moves", () => {
    const one = client();
    one.spend(32 * 1024 * 1024);
    expect(one.isSpent).to.equal(true);
  });

  it("gives smaller shares while somebody waits", () => {
    const alone = requestsOf(client());
    later("somebody");
    expect(requestsOf(client())).to.be.below(alone);
    endTurn();
    expect(requestsOf(client())).to.equal(alone);
  });

  it("gives a client one turn, however often it asks, which is over with that turn of the event loop", () => {
    const isNow: boolean[] = [];
    const one = client(() => {
      called.push("one");
      isNow.push(one.isNow);
    });
    one.await();
    one.await();
    expect(one.isNow).to.equal(false);
    endTurn();
    endTurn();
    expect(called).to.deep.equal(["one"]);
    expect(isNow).to.deep.equal([true]);
    expect(one.isNow).to.equal(false);
  });
});

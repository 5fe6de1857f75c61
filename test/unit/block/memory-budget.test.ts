import { expect } from "chai";

import { MemoryBudget } from "../../../src/block/memory-budget.js";
import { isSettled, turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

describe("MemoryBudget", () => {
  it("admits at once what fits, and no more", () => {
    const budget = new MemoryBudget(100);
    expect([budget.tryTake(60), budget.tryTake(40), budget.tryTake(1)]).to.deep.equal([true, true, false]);
    expect(budget.takenBytes).to.equal(100);
    budget.give(40);
    expect([budget.tryTake(41), budget.tryTake(40)]).to.deep.equal([false, true]);
  });

  it("serves those who wait in order of arrival, and lets nobody overtake", async () => {
    const budget = new MemoryBudget(100);
    const order: string[] = [];
    budget.tryTake(100);
    const take = (name: string, bytes: number): Promise<void> =>
      budget.take(bytes).then(() => void order.push(name));
    const taken = [take("large", 90), take("small", 10), take("last", 50)];
    budget.give(50);
    await turns();
    expect(order, "the small one would fit").to.deep.equal([]);
    expect(budget.tryTake(1)).to.equal(false);
    budget.give(50);
    await turns();
    expect(order).to.deep.equal(["large", "small"]);
    budget.give(90);
    await Promise.all(taken);
    expect(order).to.deep.equal(["large", "small", "last"]);
    expect(budget.takenBytes).to.equal(60);
  });

  it("admits alone what is larger than the limit", async () => {
    const budget = new MemoryBudget(100);
    budget.tryTake(1);
    let isAdmitted = false;
    const taken = budget.take(1000).then(() => (isAdmitted = true));
    await turns();
    expect(isAdmitted).to.equal(false);
    budget.give(1);
    await taken;
    expect([budget.tryTake(1), budget.takenBytes]).to.deep.equal([false, 1000]);
    budget.give(1000);
    expect(budget.tryTake(100)).to.equal(true);
  });

  it("drawn down, lets no more than a quarter of what is given back be taken again, until little is left", async () => {
    const budget = new MemoryBudget(100);
    budget.tryTake(90);
    let isReached = false;
    const drawnDown = budget.drawDown(10).then((rise) => {
      isReached = true;
      return rise;
    });
    const taken: number[] = [];
    const takers = [1, 4, 5, 100].map((bytes) => budget.take(bytes).then(() => taken.push(bytes)));
    const given = async (bytes: number): Promise<readonly unknown[]> => {
      budget.give(bytes);
      await turns();
      return [budget.takenBytes, isReached, [...taken]];
    };
    expect(await given(4)).to.deep.equal([87, false, [1]]);
    expect(await given(12)).to.deep.equal([75, false, [1]]);
    expect(await given(4)).to.deep.equal([75, false, [1, 4]]);
    expect(await given(55)).to.deep.equal([25, false, [1, 4, 5]]);
    expect(await given(15)).to.deep.equal([10, true, [1, 4, 5]]);
    expect([budget.wouldExceed(90), budget.wouldExceed(91)]).to.deep.equal([false, true]);
    expect(await given(5)).to.deep.equal([5, true, [1, 4, 5]]);
    (await drawnDown)();
    expect(budget.tryTake(1), "somebody waits").to.equal(false);
    expect(await given(5)).to.deep.equal([100, true, [1, 4, 5, 100]]);
    budget.give(100);
    await Promise.all(takers);
    expect(budget.tryTake(100)).to.equal(true);
  });

  it("is drawn down at once where little is taken, and stays so until it may rise", async () => {
    const budget = new MemoryBudget(100);
    budget.tryTake(10);
    const rise = await budget.drawDown(20);
    expect([budget.tryTake(11), budget.tryTake(10), budget.tryTake(1)]).to.deep.equal([false, true, false]);
    const taken = budget.take(80);
    expect(await isSettled(taken)).to.equal(false);
    rise();
    await taken;
    expect(budget.takenBytes).to.equal(100);
  });

  it("never exceeds its limit, loses nothing and admits everybody", async () => {
    const budget = new MemoryBudget(1000);
    const random = new Random(SEED);
    let served = 0;
    const users = Array.from({ length: 300 }, async () => {
      const bytes = random.below(1001);
      await budget.take(bytes);
      expect(budget.takenBytes).to.be.at.most(1000);
      await turns(random.below(3));
      budget.give(bytes);
      served++;
    });
    await Promise.all(users);
    expect([served, budget.takenBytes]).to.deep.equal([300, 0]);
  });
});

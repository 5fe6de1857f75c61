import { expect } from "chai";

import { parseMetrics } from "../../tools/prometheus.js";

const HEAD = "# HELP a Help.\n# TYPE a gauge\n";

describe("parseMetrics", () => {
  it("reads families, labels with escapes, and values", () => {
    const text = `${HEAD}a{x="1",y="\\\\n\\"\\n,"} 1.5\na -2e3\n# HELP b_total B.\n# TYPE b_total counter\nb_total 7\n`;
    expect([...parseMetrics(text)]).to.deep.equal([
      [
        "a",
        {
          type: "gauge",
          help: "Help.",
          series: [
            { labels: { x: "1", y: '\\n"\n,' }, value: 1.5 },
            { labels: {}, value: -2000 },
          ],
        },
      ],
      ["b_total", { type: "counter", help: "B.", series: [{ labels: {}, value: 7 }] }],
    ]);
  });

  const mistakes: Readonly<Record<string, string>> = {
    "no end of the last line": `${HEAD}a 1`,
    "an empty line": `${HEAD}a 1\n\n`,
    "a sample without a TYPE": "a 1\n",
    "a TYPE without a HELP": "# TYPE a gauge\na 1\n",
    "a HELP without a TYPE": "# HELP a Help.\na 1\n",
    "a family without samples": HEAD,
    "a family without samples before another": `${HEAD}# HELP b Help.\n# TYPE b gauge\nb 1\n`,
    "a family in two places": `${HEAD}a 1\n# HELP b Help.\n# TYPE b gauge\nb 1\n${HEAD}a{x="1"} 1\n`,
    "a sample of another family": `${HEAD}b 1\n`,
    "a series twice": `${HEAD}a{x="1",y="2"} 1\na{y="2",x="1"} 2\n`,
    "a label twice": `${HEAD}a{x="1",x="2"} 1\n`,
    "a quote that is not escaped": `${HEAD}a{x="1"2"} 1\n`,
    "an escape that there is not": `${HEAD}a{x="\\t"} 1\n`,
    "a value that is no number": `${HEAD}a undefined\n`,
    "a name with a hyphen": "# HELP a-b Help.\n# TYPE a-b gauge\na-b 1\n",
    "a counter without _total": "# HELP a Help.\n# TYPE a counter\na 1\n",
    "a gauge with _total": "# HELP a_total Help.\n# TYPE a_total gauge\na_total 1\n",
  };
  for (const [mistake, text] of Object.entries(mistakes)) {
    it(`refuses ${mistake}`, () => {
      expect(() => parseMetrics(text)).to.throw();
    });
  }
});

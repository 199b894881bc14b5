/** Edits ranked: rewards, dimensions with their sigma, who beats whom, and what could not be scored. */

import { bar, domain, tint } from "./charts.js";
import { critique } from "./critique.js";
import { announce, button, chance, h, hint, number, plural, spread, words } from "./dom.js";
import { image, ObjectUrls } from "./pictures.js";
import { winProbability } from "./probability.js";

const MOST_IN_MATRIX = 12;

/** @typedef {import("./pictures.js").Picture} Picture */
/** @typedef {{source: Picture[], edits: Picture[], instruction: string}} Asked */

export class Results {
  #urls = new ObjectUrls();
  #critiques = new AbortController();

  /**
   * @param {HTMLElement} root
   * @param {(work: () => Promise<void>, place: HTMLElement, again: () => void, label: string) => Promise<void>} guarded
   *   runs what may fail, says why in `place`, and offers to do it again
   */
  constructor(root, guarded) {
    this.root = root;
    this.guarded = guarded;
  }

  /** Takes everything away, and gives the memory of its pictures back. */
  clear(...instead) {
    this.#critiques.abort();
    this.#critiques = new AbortController();
    this.#urls.release();
    this.root.replaceChildren(...instead);
  }

  /**
   * Shows a reply. Returns what there is to be said of it.
   *
   * @param {Asked} asked
   * @param {any[]} scores of the one group, in the order of its edits
   * @param {any} reply its other fields
   * @param {boolean} explains whether the server writes critiques
   */
  show(asked, scores, reply, explains) {
    this.clear();
    const scored = scores.filter(({ status }) => status === "ok").sort((a, b) => b.reward - a.reward);
    const failed = scores.filter(({ status }) => status !== "ok");
    const dimensions = Object.keys(scored[0]?.dimensions ?? {});
    const outputs = ["reward", ...dimensions];
    const numbers = scored.flatMap((score) => outputs.map((name) => output(score, name)));
    const ends = numbers.flatMap(({ mean, std }) => [mean - std, mean + std]);
    const nameOf = ({ index }) => asked.edits[index].name;
    const view = { asked, scored, dimensions, outputs, range: domain(ends), explains, nameOf };
    view.cards = scored.map((score, index) => this.#card(view, score, index + 1));
    view.tray = h("div", { class: "tray", role: "group", "aria-label": "Comparison of two edits" });
    view.chosen = scored.slice(0, 2);
    const left = failed.length ? `, ${failed.length} could not be scored` : "";
    const headline = `${plural(scored.length, "edit")} ranked${left}`;
    this.root.append(
      h("header", { class: "summary" }, h("h2", {}, headline), h("p", { class: "quote" }, asked.instruction), legend(view)),
      h("ol", { class: "ranked", role: "list" }, ...view.cards, ...failed.map((score) => this.#failure(view, score))),
      scored.length > 1 ? view.tray : "",
      scored.length > 2 && scored.length <= MOST_IN_MATRIX ? matrix(view) : "",
      provenance(reply),
    );
    this.#compare(view);
    const [best] = scored;
    return best ? `${headline}. Best: ${nameOf(best)}, reward ${spread(best.reward, best.reward_std)}.` : headline;
  }

  #card(view, score, rank) {
    const name = view.nameOf(score);
    const url = this.#urls.of(view.asked.edits[score.index].blob);
    const place = h("div", { class: "explained", hidden: true });
    const choose = () => this.#choose(view, score);
    const rows = view.outputs.map((dimension) => {
      const { mean, std } = output(score, dimension);
      const drawn = h("dd", {}, bar(mean, std, view.range), h("span", { class: "value" }, spread(mean, std)));
      return h("div", { class: tint(dimension, view.dimensions) }, h("dt", {}, words(dimension)), drawn);
    });
    return h(
      "li",
      { class: "card", onclick: (event) => !event.target.closest("button, .explained") && choose() },
      h("span", { class: "rank" }, h("span", { class: "unseen" }, "Rank "), rank),
      image(url, name, { class: "thumb" }),
      h(
        "div", { class: "told" },
        h("p", { class: "title" }, name),
        h(
          "p", { class: "reward" },
          number(score.reward),
          score.reward_std !== null && h("small", {}, ` ± ${number(score.reward_std)}`),
        ),
        "normalized" in score && hint(`${number(score.normalized)} normalized`),
        h(
          "div", { class: "buttons" },
          button("Compare", choose, { class: "compare", "aria-label": `Compare ${rank}, ${name}` }),
          view.explains && this.#critiqueButton(view, score, place, url),
          score.cached && h("span", { class: "tag" }, "cached"),
        ),
      ),
      h("dl", { class: "bars" }, ...rows),
      place,
    );
  }

  #critiqueButton({ asked, dimensions, nameOf }, score, place, url) {
    const name = nameOf(score);
    const source = asked.source.map(({ blob }) => blob);
    const question = { source, edited: asked.edits[score.index].blob, instruction: asked.instruction };
    const shown = h("div", { class: "beside" });
    const problem = h("div");
    const ask = () => {
      problem.replaceChildren();
      const work = () => critique(shown, question, url, name, dimensions, this.#critiques.signal);
      return this.guarded(work, problem, ask, "Ask again");
    };
    const toggle = ({ currentTarget }) => {
      place.hidden = !place.hidden;
      currentTarget.setAttribute("aria-expanded", String(!place.hidden));
      if (place.hidden || place.childElementCount) return;
      place.append(shown, problem);
      ask();
    };
    return button("Critique", toggle, { "aria-expanded": "false", "aria-label": `Critique of ${name}` });
  }

  #failure({ asked, nameOf }, score) {
    return h(
      "li", { class: "card failed" },
      h("span", { class: "rank" }, "–"),
      image(this.#urls.of(asked.edits[score.index].blob), nameOf(score), { class: "thumb" }),
      h("div", { class: "told" }, h("p", { class: "title" }, nameOf(score))),
      h("p", { class: "problem" }, score.error.message, " ", h("code", {}, score.error.code)),
    );
  }

  /** The newest two choices stand; choosing one of them again takes it out. */
  #choose(view, score) {
    const { chosen } = view;
    view.chosen = chosen.includes(score) ? chosen.filter((other) => other !== score) : [...chosen.slice(-1), score];
    announce(this.#compare(view));
  }

  /** Shows the two that are chosen beside each other. Returns the same in words. */
  #compare({ scored, chosen, tray, cards, dimensions, outputs, nameOf }) {
    scored.forEach((score, index) => {
      cards[index].classList.toggle("chosen", chosen.includes(score));
      cards[index].querySelector(".compare").setAttribute("aria-pressed", String(chosen.includes(score)));
    });
    if (chosen.length < 2) {
      const missing = `Choose ${chosen.length ? "one more edit" : "two edits"} to see which is better, and how surely.`;
      tray.replaceChildren(hint(missing));
      return missing;
    }
    const [a, b] = scored.filter((score) => chosen.includes(score));
    const odds = outputs.map((name) => ({ name, p: winProbability(output(a, name), output(b, name)) }));
    const rows = odds.map(({ name, p }) =>
      h(
        "div", { class: `odds ${tint(name, dimensions)}`, "data-p": p },
        h("span", { class: "value" }, chance(p)),
        h("span", { class: "split", style: { "--p": p } }, h("span", {}, words(name))),
        h("span", { class: "value" }, chance(1 - p)),
      ));
    const side = (score) => {
      const rank = scored.indexOf(score);
      const shown = cards[rank].querySelector("img.thumb")?.cloneNode();
      if (shown) shown.alt = ""; // its name stands below
      return h("div", { class: "side" }, shown, h("span", {}, `${rank + 1} · ${nameOf(score)}`));
    };
    tray.replaceChildren(side(a), h("div", { class: "versus" }, ...rows), side(b));
    return `${nameOf(a)} is better than ${nameOf(b)} with a probability of ${chance(odds[0].p)}.`;
  }
}

/** The reward or a dimension of a score, as mean and std. */
const output = (score, name) =>
  name === "reward" ? { mean: score.reward, std: score.reward_std } : score.dimensions[name];

function legend({ outputs, dimensions }) {
  const keys = outputs.map((name) => h("span", { class: `key ${tint(name, dimensions)}` }, words(name)));
  return h("p", { class: "legend" }, ...keys, h("span", { class: "hint" }, "bar: mean · whisker: ±1σ"));
}

/** Everybody against everybody: a table of percentages, for the reward or for one dimension. */
function matrix({ scored, outputs, nameOf }) {
  const table = h("table", { class: "matrix" });
  const draw = (name) => {
    const cell = (a, b) => {
      const p = winProbability(output(a, name), output(b, name));
      return a === b ? h("td", { class: "self" }, "·") : h("td", { style: { "--p": p } }, chance(p));
    };
    const rows = scored.map((a, row) =>
      h("tr", {}, h("th", { scope: "row" }, `${row + 1} · ${nameOf(a)}`), ...scored.map((b) => cell(a, b))));
    const head = h("tr", {}, h("td", {}), ...scored.map((_, column) => h("th", { scope: "col" }, column + 1)));
    table.replaceChildren(h("caption", {}, "Row beats column"), head, ...rows);
  };
  const options = outputs.map((name) => h("option", { value: name }, words(name)));
  const choice = h("select", { onchange: () => draw(choice.value) }, ...options);
  draw("reward");
  return h(
    "section", { class: "pairs", "aria-label": "Win probabilities of all pairs" },
    h("header", {}, h("h3", {}, "All pairs"), h("label", {}, "by ", choice)),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of all pairs" }, table),
  );
}

function provenance({ model, fingerprint, precision, usage, timings_ms: timings }) {
  if (!model) return "";
  const computed = `${plural(usage.tokens_computed, "token")} computed of ${usage.tokens.toLocaleString("en")}`;
  const details = ` · ${precision} · ${computed} · ${number(timings.total, 0)} ms`;
  return hint(`${model} · `, h("code", {}, fingerprint), details);
}

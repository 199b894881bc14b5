/** Edits ranked: rewards, dimensions with their sigma, who beats whom, and what could not be scored. */

import { bar, domain, tint } from "./charts.js";
import { critique } from "./critique.js";
import { announce, chance, h, number, plural, spread, words } from "./dom.js";
import { image, ObjectUrls } from "./pictures.js";
import { winProbability } from "./probability.js";

const MOST_IN_MATRIX = 12;

/**
 * @typedef {{source: import("./pictures.js").Picture[], edits: import("./pictures.js").Picture[], instruction: string}} Asked
 */

export class Results {
  #urls = new ObjectUrls();
  #critiques = new AbortController();

  /**
   * @param {HTMLElement} root
   * @param {(work: () => Promise<void>, place: HTMLElement) => Promise<void>} guarded runs what may fail, and says why in place
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
    const scored = scores.filter((score) => score.status === "ok").sort((a, b) => b.reward - a.reward);
    const failed = scores.filter((score) => score.status !== "ok");
    const dimensions = Object.keys(scored[0]?.dimensions ?? {});
    const ends = scored.flatMap((score) =>
      [[score.reward, score.reward_std], ...dimensions.map((name) => [score.dimensions[name].mean, score.dimensions[name].std])]
        .flatMap(([mean, std]) => [mean - (std ?? 0), mean + (std ?? 0)]));
    const view = { asked, scored, dimensions, range: domain(ends), explains };
    this.clear();
    view.cards = [...scored.map((score, index) => this.#card(view, score, index + 1)), ...failed.map((score) => this.#failure(view, score))];
    view.tray = h("div", { class: "tray", role: "group", "aria-label": "Comparison of two edits" });
    view.chosen = scored.slice(0, 2);
    const said = `${plural(scored.length, "edit")} ranked${failed.length ? `, ${failed.length} could not be scored` : ""}`;
    this.root.append(
      h("header", { class: "summary" }, h("h2", {}, said), h("p", { class: "quote" }, asked.instruction), legend(dimensions)),
      h("ol", { class: "ranked", role: "list" }, ...view.cards),
      scored.length > 1 ? view.tray : "",
      scored.length > 2 && scored.length <= MOST_IN_MATRIX ? matrix(view) : "",
      provenance(reply),
    );
    this.#compare(view);
    const [best] = scored;
    return best ? `${said}. Best: ${this.#name(view, best)}, reward ${spread(best.reward, best.reward_std)}.` : said;
  }

  #name(view, score) {
    return view.asked.edits[score.index].name;
  }

  #card(view, score, rank) {
    const { asked, dimensions, range, explains } = view;
    const name = this.#name(view, score);
    const url = this.#urls.of(asked.edits[score.index].blob);
    const place = h("div", { class: "explained", hidden: true });
    const rows = [["reward", score.reward, score.reward_std], ...dimensions.map((one) => [one, score.dimensions[one].mean, score.dimensions[one].std])];
    const compare = h("button", {
      type: "button", class: "compare", "aria-pressed": "false", "aria-label": `Compare ${rank}, ${name}`,
      onclick: (event) => {
        event.stopPropagation();
        this.#choose(view, score);
      },
    }, "Compare");
    return h(
      "li",
      { class: "card", "data-index": score.index, onclick: (event) => !event.target.closest("button, .explained") && this.#choose(view, score) },
      h("span", { class: "rank" }, h("span", { class: "unseen" }, "Rank "), rank),
      image(url, name, { class: "thumb" }),
      h(
        "div", { class: "told" },
        h("p", { class: "title" }, name),
        h("p", { class: "reward" }, number(score.reward), score.reward_std !== null && h("small", {}, ` ± ${number(score.reward_std)}`), score.cached && h("span", { class: "tag" }, "cached")),
        "normalized" in score && h("p", { class: "hint" }, `${number(score.normalized)} normalized`),
        h("div", { class: "buttons" }, compare, explains && this.#critiqueButton(view, score, place, url, name)),
      ),
      h("dl", { class: "bars" }, ...rows.map(([one, mean, std]) =>
        h("div", { class: tint(one, dimensions) }, h("dt", {}, words(one)), h("dd", {}, bar(mean, std, range), h("span", { class: "value" }, spread(mean, std)))))),
      place,
    );
  }

  #critiqueButton(view, score, place, url, name) {
    const { source, edits, instruction } = view.asked;
    const button = h("button", {
      type: "button", "aria-expanded": "false", "aria-label": `Critique of ${name}`,
      onclick: async () => {
        const open = place.hidden;
        place.hidden = !open;
        button.setAttribute("aria-expanded", String(open));
        if (!open || place.childElementCount) return;
        const asked = { source: source.map(({ blob }) => blob), edited: edits[score.index].blob, instruction };
        await this.guarded(() => critique(place, asked, url, name, view.dimensions, this.#critiques.signal), place);
      },
    }, "Critique");
    return button;
  }

  #failure({ asked }, { index, error }) {
    const name = asked.edits[index].name;
    return h(
      "li", { class: "card failed", "data-index": index },
      h("span", { class: "rank" }, "–"),
      image(this.#urls.of(asked.edits[index].blob), name, { class: "thumb" }),
      h("div", { class: "told" }, h("p", { class: "title" }, name)),
      h("p", { class: "problem" }, error.message, " ", h("code", {}, error.code)),
    );
  }

  /** The newest two choices stand; choosing one of them again takes it out. */
  #choose(view, score) {
    view.chosen = view.chosen.includes(score) ? view.chosen.filter((one) => one !== score) : [...view.chosen.slice(-1), score];
    this.#compare(view, true);
  }

  #compare({ asked, scored, chosen, tray, cards, dimensions }, aloud = false) {
    scored.forEach((score, index) => {
      cards[index].classList.toggle("chosen", chosen.includes(score));
      cards[index].querySelector(".compare").setAttribute("aria-pressed", String(chosen.includes(score)));
    });
    if (chosen.length < 2) {
      tray.replaceChildren(h("p", { class: "hint" }, `Choose ${chosen.length ? "one more edit" : "two edits"} to see which is better, and how surely.`));
      return;
    }
    const [a, b] = [...chosen].sort((one, other) => scored.indexOf(one) - scored.indexOf(other));
    const side = (score) => {
      const { name } = asked.edits[score.index];
      return h("div", { class: "side" }, h("img", { src: cards[scored.indexOf(score)].querySelector("img")?.src ?? "page/icon.svg", alt: "" }), h("span", {}, `${scored.indexOf(score) + 1} · ${name}`));
    };
    const rows = ["reward", ...dimensions].map((name) => {
      const p = winProbability(output(a, name), output(b, name));
      return h(
        "div", { class: `odds ${tint(name, dimensions)}`, "data-p": p },
        h("span", { class: "value" }, chance(p)),
        h("span", { class: "split", style: { "--p": p } }, h("span", {}, words(name))),
        h("span", { class: "value" }, chance(1 - p)),
      );
    });
    const said = `${asked.edits[a.index].name} is better than ${asked.edits[b.index].name} with a probability of ${chance(winProbability(output(a, "reward"), output(b, "reward")))}.`;
    if (aloud) announce(said);
    tray.replaceChildren(side(a), h("div", { class: "versus" }, h("p", { class: "unseen" }, said), ...rows), side(b));
  }
}

/** The reward or a dimension of a score, as mean and std. */
const output = (score, name) => (name === "reward" ? { mean: score.reward, std: score.reward_std } : score.dimensions[name]);

function legend(dimensions) {
  const keys = dimensions.map((name) => h("span", { class: `key ${tint(name, dimensions)}` }, words(name)));
  return h("p", { class: "legend" }, h("span", { class: "key tint-reward" }, "reward"), ...keys, h("span", { class: "hint" }, "bar: mean · whisker: ±1σ"));
}

/** Everybody against everybody: a table of percentages, for the reward or for one dimension. */
function matrix({ scored, dimensions, asked }) {
  const table = h("table", { class: "matrix" });
  const draw = (name) => {
    const head = h("tr", {}, h("td", {}), ...scored.map((_, column) => h("th", { scope: "col" }, column + 1)));
    const rows = scored.map((a, row) =>
      h("tr", {}, h("th", { scope: "row" }, `${row + 1} · ${asked.edits[a.index].name}`), ...scored.map((b) => {
        if (a === b) return h("td", { class: "self" }, "·");
        const p = winProbability(output(a, name), output(b, name));
        return h("td", { style: { "--p": p } }, chance(p));
      })));
    table.replaceChildren(h("caption", {}, "Row beats column"), head, ...rows);
  };
  draw("reward");
  const choice = h("select", { onchange: () => draw(choice.value) }, ...["reward", ...dimensions].map((name) => h("option", { value: name }, words(name))));
  return h(
    "section", { class: "pairs", "aria-label": "Win probabilities of all pairs" },
    h("header", {}, h("h3", {}, "All pairs"), h("label", {}, "by ", choice)),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of all pairs" }, table),
  );
}

function provenance({ model, fingerprint, precision, usage, timings_ms }) {
  if (!model) return "";
  return h("p", { class: "provenance" },
    `${model} · `, h("code", {}, fingerprint), ` · ${precision} · ${plural(usage.tokens_computed, "token")} computed of ${usage.tokens.toLocaleString("en")} · ${number(timings_ms.total, 0)} ms`);
}

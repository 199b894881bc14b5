/** Watch: the groups that trainers send, live, and how their rewards move. */

import { ApiError, events, forgetKey, request, Unreachable } from "./api.js";
import { bands, domain, QUANTILES, sparkline, strip, tint } from "./charts.js";
import { button, byId, bytes, clock, h, hint, number, percent, plural, signed, spread, words } from "./dom.js";
import { findings, isCompared, isFar } from "./findings.js";
import { image, ObjectUrls } from "./pictures.js";

const SHOWN = 24; // groups at first, and how many more a click shows
const LEAST_SLOTS = 12; // a chart of one bucket would be a wall
const EQUAL = 1e-6;
const NEVER = 86_400; // seconds: only another key helps, or coming back
const AGING_MS = 5000; // a chart ages when nothing comes
const AGAIN_MS = 5000; // until a picture that did not come is asked for once more

/** @returns {{show: (shown: boolean) => void}} the stream is open only while the view is shown */
export function start() {
  const root = byId("watch-view");
  const view = new View(root);
  let open = null;
  return {
    show(shown) {
      if (shown && !open) {
        open = new AbortController();
        follow(view, open.signal);
      } else if (!shown) {
        open?.abort();
        open = null;
      }
    },
  };
}

/** Reads the stream until told to stop, and comes back where it was after it broke. */
async function follow(view, signal) {
  while (!signal.aborted) {
    let pause = 2;
    try {
      const headers = { accept: "text/event-stream", ...(view.last && { "last-event-id": view.last }) };
      const response = await request("v1/watch", { headers, signal });
      view.ahead = (Date.parse(response.headers.get("date") ?? "") || Date.now()) - Date.now();
      for await (const { event, id, data } of events(response, signal)) {
        if (id && view.last && id.split("-")[0] !== view.last.split("-")[0]) view.forget(); // of another process
        view.last = id ?? view.last;
        view.take(event, JSON.parse(data));
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError) && !(error instanceof Unreachable)) throw error;
      pause = view.explain(error);
    }
    await new Promise((resolve) => {
      setTimeout(resolve, 1000 * pause);
      view.addEventListener("again", resolve, { once: true });
      signal.addEventListener("abort", resolve, { once: true });
    });
  }
}

/** What is shown. It sends the event "again" when it is worth asking once more. */
class View extends EventTarget {
  /** Groups, newest last, and the cards of those that are shown. */
  #groups = [];
  #cards = new Map();
  #limit = SHOWN;
  #most = Infinity;
  /** What is shown while paused. @type {any[] | null} */
  #frozen = null;
  #waiting = 0;
  #drawing = false;
  #dimensions = [];
  #range = [0, 1];
  #window = { buckets: [] };
  /** How far the clock of the server is ahead of the one here, in milliseconds. */
  ahead = 0;
  /** The id of the newest event: where the stream goes on. @type {string | null} */
  last = null;
  /** Loads a picture when it comes near the screen. */
  #near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries.filter((entry) => entry.isIntersecting)) {
      this.#near.unobserve(target);
      if (isIntersecting) target.dispatchEvent(new Event("near"));
    }
  }, { rootMargin: "400px" });

  constructor(root) {
    super();
    this.kept = hint();
    this.pause = button("Pause", () => this.#toggle());
    this.notice = h("div", { class: "notice", role: "status" }, "Connecting …");
    this.findings = h("div", { class: "findings", role: "status" });
    const left = () => requestAnimationFrame(() => this.#chart()); // when it is known where the focus went
    this.charts = h("div", { class: "charts", onfocusout: left });
    this.list = h("ol", { class: "groups", role: "list", "aria-label": "Groups, newest first" });
    this.more = button("Show more", () => this.#draw(SHOWN));
    const newest = h("div", { class: "headline" }, h("h3", {}, "Newest groups"), this.pause);
    this.live = h("div", { class: "panel", hidden: true }, this.findings, this.charts, newest, this.list, this.more);
    root.append(h("div", { class: "headline" }, h("h2", {}, "Watch"), this.kept), this.notice, this.live);
    setInterval(() => this.#date(), AGING_MS);
  }

  /** One event of the stream. */
  take(event, data) {
    if (event === "hello") {
      this.notice.hidden = true;
      this.live.hidden = false;
      this.#dimensions = data.dimensions;
      this.#most = data.keep_recent;
      const where = `in this server's memory only: at most ${bytes(data.keep_bytes)}, gone when it ends.`;
      this.kept.textContent = `The last ${plural(data.keep_recent, "group")} are kept with pictures, ${where}`;
      if (!data.first_hour) this.forget();
      this.#tell({ buckets: [], ...data });
    } else if (event === "group") {
      this.#groups.push(data);
      if (this.#groups.length > this.#most) this.#groups.shift();
      this.#waiting += 1;
      if (this.#drawing) return;
      this.#drawing = true; // a hundred groups may come at once
      requestAnimationFrame(() => ((this.#drawing = false), this.#draw()));
    } else if (event === "window") this.#tell(data);
  }

  forget() {
    this.#groups = [];
    this.#draw();
  }

  /** Says why there is nothing to see. Returns after how many seconds to try again. */
  explain(error) {
    const gone = error instanceof Unreachable;
    const paragraph = (content) => (content instanceof Node ? content : h("p", {}, content));
    const say = (...contents) => this.notice.replaceChildren(...contents.map(paragraph));
    const command = (text) => h("pre", {}, text);
    const otherKey = (label) => button(label, () => {
      forgetKey();
      this.dispatchEvent(new Event("again"));
    });
    this.live.hidden = [401, 403, 404].includes(error.status) || !this.#cards.size; // the rest may pass
    this.notice.hidden = false;
    if (gone) {
      say("The server does not answer. What was seen stays here; watching goes on when it is back.");
    } else if (error.status === 404) {
      say(
        "Watching is off: this server keeps nothing of what it scores.",
        "To keep the last 200 groups in memory, with their sources, best and worst edits, start it with:",
        command("jrm serve --keep-recent 200"),
        "With API keys, only a key with the scope watch may see them.",
      );
      return 10;
    } else if (error.status === 403) {
      const how = command("jrm key new --name NAME --file KEYS-FILE --scope watch");
      const needed = "This API key can score but not watch; watching needs the scope watch.";
      say(needed, how, error.message, otherKey("Use another key"));
      return NEVER;
    } else if (error.status === 401) {
      say("An API key with the scope watch is needed.", otherKey("Enter a key"));
      return NEVER;
    } else say(error.message);
    return error.retryAfter ?? 2;
  }

  #toggle() {
    this.#frozen = this.#frozen ? null : [...this.#groups];
    this.#waiting = 0;
    this.#draw();
  }

  /** Brings the list up to date: new cards at its top, those beyond the limit away, with their pictures. */
  #draw(further = 0) {
    this.#limit += further;
    this.pause.textContent = this.#frozen ? `Resume (${this.#waiting} new)` : "Pause";
    const groups = this.#frozen ?? this.#groups;
    const wanted = groups.slice(-this.#limit).reverse();
    for (const [group, { card, urls }] of this.#cards) {
      if (wanted.includes(group)) continue;
      card.remove();
      urls.release();
      this.#cards.delete(group);
    }
    const range = domain(groups.flatMap(rewards), false);
    if (String(range) !== String(this.#range)) {
      this.#range = range;
      for (const [group, { strips }] of this.#cards) strips.replaceChildren(strip(rewards(group), range));
    }
    let previous = null;
    for (const group of wanted) {
      if (!this.#cards.has(group)) this.#cards.set(group, this.#card(group));
      const { card } = this.#cards.get(group);
      if (!card.isConnected) previous ? previous.after(card) : this.list.prepend(card);
      previous = card;
    }
    this.more.hidden = groups.length <= this.#limit;
    this.more.textContent = `Show more (${wanted.length} of ${groups.length})`;
  }

  #card(group) {
    const urls = new ObjectUrls();
    const scored = rewards(group);
    const failed = group.scores.length - scored.length;
    const flat = scored.length > 1 && Math.max(...scored) - Math.min(...scored) <= EQUAL;
    const figure = (id, name, index = null) => {
      const place = h("div", { class: "later", onnear: () => this.#load(place, id, name, urls) });
      if (id) this.#near.observe(place);
      const reward = index === null ? null : h("strong", {}, ` ${number(group.scores[index].reward)}`);
      const shown = id ? place : h("span", { class: "undrawn" }, "not kept");
      return h("figure", {}, shown, h("figcaption", {}, name, reward));
    };
    const { sources, best, worst } = group.pictures;
    const strips = h("div", {}, strip(scored, this.#range));
    const counted = [plural(group.scores.length, "edit"), failed && `${failed} without a score`, flat && "no spread"];
    const details = [clock(group.time), group.key, group.wire, ...counted].filter(Boolean).join(" · ");
    const means = this.#dimensions.map((name) => `${words(name)} ${spread(...moments(group, name))}`).join(", ");
    const card = h(
      "li", { class: "group" },
      hint(details),
      h("p", { class: "asked" }, group.instruction, group.instruction_cut && " …"),
      h(
        "div", { class: "trio" },
        ...sources.map((id, index) => figure(id, sources.length > 1 ? `source ${index + 1}` : "source")),
        group.best !== null && figure(best, "best", group.best),
        group.worst !== null && figure(worst, "worst", group.worst),
      ),
      strips,
      scored.length > 0 && hint(`rewards ${number(Math.min(...scored))} to ${number(Math.max(...scored))}, ${means}`),
    );
    return { card, strips, urls };
  }

  async #load(place, id, name, urls) {
    try {
      const blob = await (await request(`v1/watch/pictures/${encodeURIComponent(id)}`)).blob();
      if (place.isConnected) place.replaceWith(image(urls.of(blob), name));
    } catch (error) {
      if (error.status === 404) place.replaceWith(h("span", { class: "undrawn" }, "no longer kept"));
      else setTimeout(() => place.isConnected && this.#near.observe(place), AGAIN_MS);
    }
  }

  /** The window: findings in words, then charts. */
  #tell(window) {
    const notices = findings(window).map(({ kind, text }) => h("p", { class: `notice ${kind}` }, text));
    const text = notices.map((notice) => notice.textContent).join();
    if (text !== this.told) this.findings.replaceChildren(...notices);
    this.told = text;
    this.#window = window;
    this.#chart();
  }

  /** A chart of the reward, of each dimension, and of the spread. They stand still while read with the keyboard. */
  #chart() {
    if (this.charts.querySelector(":focus-visible")) return;
    const slots = inTime(this.#window);
    const drift = isCompared(this.#window) ? this.#window.drift : null;
    this.charts.replaceChildren(
      ...["reward", ...this.#dimensions].map((name) => distribution(name, slots, drift, this.#dimensions)),
      lines("Spread within groups", "mean standard deviation of the rewards of a group", slots, "group_std", number),
      lines("Groups without spread", "all rewards of a group equal", slots, "no_spread_share", percent, [0, 1]),
      lines("Errors", "edits without a score", slots, "error_share", percent, [0, 1]),
    );
    this.#date();
  }

  /** Says at the right end of each chart when that is. */
  #date() {
    const { buckets, bucket_seconds: seconds } = this.#window;
    if (!buckets.length) return;
    const { start } = buckets.at(-1);
    const old = (Date.now() + this.ahead) / 1000 - (start + seconds) > 2 * seconds;
    const label = old ? `nothing since ${clock(start + seconds)}` : clock(start);
    for (const end of this.charts.querySelectorAll(".until")) end.textContent = label;
  }
}

const rewards = (group) => group.scores.filter(({ status }) => status === "ok").map(({ reward }) => reward);

/** Mean and standard deviation of a dimension over the edits of a group. */
function moments(group, name) {
  const values = group.scores.flatMap(({ dimensions }) => dimensions?.[name]?.mean ?? []);
  const mean = values.reduce((total, value) => total + value, 0) / values.length;
  return [mean, Math.sqrt(values.reduce((total, value) => total + (value - mean) ** 2, 0) / values.length)];
}

/** Buckets at their times: those in which nothing came are left out of the event, and are gaps here. */
function inTime({ buckets, bucket_seconds: seconds = 1 }) {
  const end = buckets.at(-1)?.start ?? 0;
  const at = ({ start }) => Math.round((end - start) / seconds);
  const count = Math.max(LEAST_SLOTS, buckets.length ? at(buckets[0]) + 1 : 0);
  const slots = Array.from({ length: count }, (_, n) => ({ start: end - (count - 1 - n) * seconds, bucket: null }));
  for (const bucket of buckets) slots[count - 1 - at(bucket)].bucket = bucket;
  return slots;
}

function panel(name, title, figure, ...content) {
  return h("section", { class: name }, h("header", {}, h("h3", name && { class: "key" }, title), figure), ...content);
}

/** A distribution over time, and how far it has moved. */
function distribution(name, slots, drift, dimensions) {
  const of = (all) => (name === "reward" ? all?.reward : all?.dimensions[name]) ?? null;
  const shift = of(drift)?.shift ?? null;
  const far = isFar(shift) ? "drift far" : "drift";
  const moved = h("span", { class: far }, shift === null ? "" : `${signed(shift, 1)}σ`);
  const rows = slots.map(({ bucket }) => of(bucket)?.quantiles ?? QUANTILES.map(() => null));
  const latest = of(slots.at(-1).bucket)?.quantiles[2];
  const label = `${words(name)} over time${latest === undefined ? "" : `: the newest median is ${number(latest)}`}`;
  const describe = (index) => {
    const { start, bucket } = slots[index];
    const { quantiles, count } = of(bucket) ?? {};
    if (!quantiles) return start > 0 ? `${clock(start)}: nothing` : "";
    const [low, , median, , high] = quantiles;
    const half = `median ${number(median)}, 90% between ${number(low)} and ${number(high)}`;
    return `${clock(start)}: ${half}, ${plural(count, "edit")}`;
  };
  return panel(tint(name, dimensions), words(name), moved, bands(rows, label, describe), times(slots));
}

/** One number over time. */
function lines(title, unit, slots, field, show, bounds = null) {
  const values = slots.map(({ bucket }) => bucket?.[field] ?? null);
  const latest = values.findLast((value) => value !== null);
  const figure = h("span", { class: "drift" }, latest === undefined ? "–" : show(latest));
  return panel("", title, figure, hint(unit), sparkline(values, bounds), times(slots));
}

/** From when until when: the end is filled in as time goes on. */
function times(slots) {
  const begin = slots.at(-1).start > 0 ? clock(slots[0].start) : "";
  return h("p", { class: "headline hint" }, h("span", {}, begin), h("span", { class: "until" }));
}

/** Status: what is served, and the numbers of /metrics drawn as they change. */

import { sparkline } from "./charts.js";
import { byId, bytes, h, hint, number, percent, plural, words } from "./dom.js";
import { growth, quantile } from "./prometheus.js";

const KEPT = 150; // readings: five minutes of them
const GAP = 10; // seconds without a reading, after which a drawing begins anew
const OVER = 5; // readings that a rate is taken over
const SCORING = /score|explain|compute|infer|rerank|mode/; // routes that are worth a row

const ratio = (part, whole) => (whole ? part / whole : null);
const share = (before, now, name, labels) => ratio(growth(before, now, name, labels), growth(before, now, name));

/** Each gauge: a title, what it is, and its value from two readings; `show` writes it, `bounds` fix its drawing. */
const GAUGES = [
  {
    title: "Candidates", unit: "per second", show: (value) => number(value, value < 10 ? 1 : 0),
    value: (before, now, seconds) => ratio(growth(before, now, "jrm_candidates_total", { outcome: "ok" }), seconds),
  },
  {
    title: "Latency", unit: "95th percentile per group", show: duration,
    value: (before, now) => quantile(before, now, "jrm_group_completion_seconds", 0.95),
  },
  {
    title: "Queue", unit: "candidates waiting or on a device", show: (value) => number(value, 0),
    value: (_, now) => now.sum("jrm_queue_depth"),
  },
  {
    title: "Batch fill", unit: "of the token budget, mean", show: percent, bounds: [0, 1],
    value(before, now) {
      const mean = ratio(growth(before, now, "jrm_batch_tokens_sum"), growth(before, now, "jrm_batch_tokens_count"));
      return mean === null ? null : ratio(mean, now.sum("jrm_batch_tokens_limit"));
    },
  },
  {
    title: "Reuse", unit: "of all tokens shared, not computed", show: percent, bounds: [0, 1],
    value: (before, now) => share(before, now, "jrm_tokens_total", { kind: "shared" }),
  },
  {
    title: "Cache", unit: "of scores were known already", show: percent, bounds: [0, 1],
    value(before, now) {
      const memory = { tier: "memory" }; // looked into first: a score that is found in Redis was missed here
      const hits = growth(before, now, "jrm_cache_hits_total") ?? 0;
      const foundHere = growth(before, now, "jrm_cache_hits_total", memory) ?? 0;
      return ratio(hits, foundHere + (growth(before, now, "jrm_cache_misses_total", memory) ?? 0));
    },
  },
  {
    title: "Device busy", unit: "of the time, all devices", show: percent, bounds: [0, 1],
    value(before, now, seconds) {
      const busy = "jrm_device_busy_seconds_total";
      return ratio(growth(before, now, busy), seconds * now.all(busy).length);
    },
  },
  {
    title: "Groups without spread", unit: "all rewards equal", show: percent, bounds: [0, 1],
    value: (before, now) => share(before, now, "jrm_groups_total", { spread: "zero" }),
  },
];

function duration(seconds) {
  if (seconds === null) return "–";
  return seconds < 1 ? `${number(1000 * seconds, 0)} ms` : `${number(seconds, 1)} s`;
}

/**
 * @typedef {import("./prometheus.js").Reading} Reading
 * @returns {{use: (info: any) => void, reading: (reading: Reading) => void, missing: (why: string) => void}}
 */
export function start() {
  const view = byId("status-view");
  const problem = h("p", { class: "notice bad", hidden: true });
  const facts = h("dl", { class: "facts" });
  const drawn = () => ({ figure: h("span", { class: "now" }), drawing: h("div"), history: [] });
  const gauges = GAUGES.map((gauge) => ({ ...gauge, ...drawn() }));
  const devices = tabled("Devices", ["worker", "device", "busy, last minute", "features held"]);
  const requests = tabled("Requests", ["route or wire", "per second", "since the start"]);
  const errors = tabled("Errors", ["code", "per minute", "since the start"]);
  const card = ({ title, unit, figure, drawing }) => h("li", {}, h("h3", {}, title), figure, hint(unit), drawing);
  const list = h("ul", { class: "gauges", role: "list" }, ...gauges.map(card));
  const tables = h("div", { class: "tables" }, devices.table, requests.table, errors.table);
  view.append(h("h2", {}, "Status"), problem, facts, list, tables);
  /** @type {Reading[]} */
  const readings = [];
  let known = null;

  function describe(now) {
    const model = now.all("jrm_model_info")[0]?.labels ?? {};
    const workers = now.sum("jrm_workers");
    const rows = {
      Model: known?.model ?? model.model,
      Fingerprint: known?.fingerprint ?? model.fingerprint,
      Precision: known?.precision,
      Device: known?.device ?? model.device,
      Dimensions: known?.dimensions?.map(words).join(", "),
      "Workers alive": workers && `${now.sum("jrm_workers_alive") ?? 0} of ${workers}`,
      "Up for": uptime(Date.now() / 1000 - now.sum("process_start_time_seconds")),
      Memory: bytes(now.sum("process_resident_memory_bytes") ?? 0),
      Version: now.all("jrm_build_info")[0]?.labels.version,
    };
    const given = Object.entries(rows).filter(([, value]) => value);
    const kind = (name) => (name === "Fingerprint" ? "code" : "span");
    const fact = ([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, h(kind(name), {}, value)));
    facts.replaceChildren(...given.map(fact));
  }

  /** Rows of a table: what a counter has by one of its labels, how fast that grows, and how far it has come. */
  function rows(before, now, name, label, per, nameOf, wanted = () => true) {
    const seconds = now.at - (before?.at ?? NaN);
    const rate = (value) => (per * (growth(before, now, name, { [label]: value }) ?? NaN)) / seconds;
    const counts = [...now.by(name, label)].filter(([value, count]) => count > 0 && wanted(value));
    return counts.map(([value, count]) => [nameOf(value), number(rate(value), 1), count.toLocaleString("en")]);
  }

  return {
    use(info) {
      known = info;
    },
    /** @param {string} why there is no reading */
    missing(why) {
      problem.textContent = `No numbers from /metrics: ${why}`;
      problem.hidden = false;
    },
    reading(now) {
      problem.hidden = true;
      if (now.at - readings.at(-1)?.at > GAP) readings.length = 0; // the tab was hidden, or the server away
      const before = readings.at(-OVER) ?? readings[0];
      readings.push(now);
      if (readings.length > KEPT) readings.shift();
      for (const gauge of gauges) {
        gauge.history.push(before ? gauge.value(before, now, now.at - before.at) : null);
        if (gauge.history.length > KEPT) gauge.history.shift();
      }
      if (view.hidden) return;
      describe(now);
      for (const { figure, drawing, history, show, bounds } of gauges) {
        figure.textContent = history.at(-1) === null ? "–" : show(history.at(-1));
        drawing.replaceChildren(sparkline([...Array(KEPT - history.length).fill(null), ...history], bounds));
      }
      devices.fill(now.all("jrm_device_busy_ratio").map(({ labels, value }) => {
        return [labels.worker, labels.device, percent(value), bytes(now.sum("jrm_feature_cache_bytes", labels) ?? 0)];
      }));
      requests.fill([
        ...rows(before, now, "jrm_http_requests_total", "route", 1, String, (route) => SCORING.test(route)),
        ...rows(before, now, "jrm_wire_requests_total", "wire", 1, (wire) => `wire ${wire}`),
      ]);
      const failed = (code) => code !== "ok";
      errors.fill([
        ...rows(before, now, "jrm_candidates_total", "outcome", 60, String, failed),
        ...rows(before, now, "jrm_rejections_total", "reason", 60, (code) => `${code} (refused)`),
        ...rows(before, now, "jrm_explanations_total", "outcome", 60, (code) => `${code} (critique)`, failed),
      ]);
    },
  };
}

function uptime(seconds) {
  const units = [[86_400, "day"], [3600, "hour"], [60, "minute"]];
  const [size, unit] = units.find(([size]) => seconds >= 1.5 * size) ?? [1, "second"];
  return seconds >= 0 ? plural(Math.round(seconds / size), unit) : null;
}

function tabled(title, columns) {
  const body = h("tbody");
  const head = h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name))));
  const none = h("tr", {}, h("td", { colspan: columns.length, class: "hint" }, "none"));
  const row = (cells) => h("tr", {}, ...cells.map((cell) => h("td", {}, cell)));
  return {
    table: h("table", {}, h("caption", {}, title), head, body),
    fill: (rows) => body.replaceChildren(...(rows.length ? rows.map(row) : [none])),
  };
}

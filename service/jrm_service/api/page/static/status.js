/** Status: what is served, and the numbers of /metrics drawn as they change. */

import { sparkline } from "./charts.js";
import { byId, bytes, h, number, percent, plural, words } from "./dom.js";
import { growth, quantile } from "./prometheus.js";

const KEPT = 150; // readings: five minutes of them
const OVER = 5; // readings that a rate is taken over

const ratio = (part, whole) => (whole ? part / whole : null);

/** Each gauge: a title, what it is, and its value from two readings; `show` writes it, `bounds` fix its drawing. */
const GAUGES = [
  {
    title: "Candidates", unit: "per second", show: (value) => number(value, value < 10 ? 1 : 0),
    value: (before, now, seconds) => ratio(growth(before, now, "jrm_candidates_total", { outcome: "ok" }), seconds),
  },
  {
    title: "Latency", unit: "a group takes, 95% of them less", show: duration,
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
    value: (before, now) => ratio(growth(before, now, "jrm_tokens_total", { kind: "shared" }), growth(before, now, "jrm_tokens_total")),
  },
  {
    title: "Cache", unit: "of scores were known already", show: percent, bounds: [0, 1],
    value(before, now) {
      const hits = growth(before, now, "jrm_cache_hits_total") ?? 0;
      return ratio(hits, hits + (growth(before, now, "jrm_cache_misses_total", { tier: "memory" }) ?? 0));
    },
  },
  {
    title: "Device busy", unit: "of the time, all devices", show: percent, bounds: [0, 1],
    value: (before, now, seconds) => ratio(growth(before, now, "jrm_device_busy_seconds_total"), seconds * now.all("jrm_device_busy_seconds_total").length),
  },
  {
    title: "Groups without spread", unit: "all rewards equal", show: percent, bounds: [0, 1],
    value: (before, now) => ratio(growth(before, now, "jrm_groups_total", { spread: "zero" }), growth(before, now, "jrm_groups_total")),
  },
];

function duration(seconds) {
  if (seconds === null) return "–";
  return seconds < 1 ? `${number(1000 * seconds, 0)} ms` : `${number(seconds, 1)} s`;
}

/** @returns {{use: (info: any) => void, reading: (reading: import("./prometheus.js").Reading) => void, missing: (why: string) => void}} */
export function start() {
  const facts = h("dl", { class: "facts" });
  const gauges = GAUGES.map((gauge) => ({ ...gauge, now: h("span", { class: "now" }, "–"), drawing: h("div"), history: [] }));
  const devices = tabled("Devices", ["worker", "device", "busy, last minute", "features held"]);
  const wires = tabled("Requests", ["route or wire", "per second", "since the start"]);
  const errors = tabled("Errors", ["code", "per minute", "since the start"]);
  const problem = h("p", { class: "notice bad", hidden: true });
  byId("status-view").append(
    h("h2", {}, "Status"), problem, facts,
    h("ul", { class: "gauges", role: "list" }, ...gauges.map(({ title, unit, now, drawing }) => h("li", {}, h("h3", {}, title), now, h("p", { class: "hint" }, unit), drawing))),
    h("div", { class: "tables" }, devices.root, wires.root, errors.root),
  );
  /** @type {import("./prometheus.js").Reading[]} */
  const readings = [];
  let known = null;

  function describe(now) {
    const build = now.all("jrm_build_info")[0]?.labels ?? {};
    const model = now.all("jrm_model_info")[0]?.labels ?? {};
    const rows = [
      ["Model", known?.model ?? model.model],
      ["Fingerprint", known?.fingerprint ?? model.fingerprint, "code"],
      ["Precision", known?.precision],
      ["Device", known?.device ?? model.device],
      ["Dimensions", known?.dimensions?.map(words).join(", ")],
      ["Workers alive", now.sum("jrm_workers") === null ? null : `${now.sum("jrm_workers_alive") ?? 0} of ${now.sum("jrm_workers")}`],
      ["Up for", uptime(Date.now() / 1000 - (now.sum("process_start_time_seconds") ?? NaN))],
      ["Memory", now.sum("process_resident_memory_bytes") && bytes(now.sum("process_resident_memory_bytes"))],
      ["Version", build.version],
    ];
    facts.replaceChildren(...rows.filter(([, value]) => value).map(([name, value, kind = "span"]) => h("div", {}, h("dt", {}, name), h("dd", {}, h(kind, {}, value)))));
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
      const before = readings.at(-OVER) ?? readings[0];
      readings.push(now);
      if (readings.length > KEPT) readings.shift();
      const seconds = before ? now.at - before.at : null;
      for (const gauge of gauges) {
        gauge.history = [...gauge.history, before ? gauge.value(before, now, seconds) : null].slice(-KEPT);
      }
      if (byId("status-view").hidden) return;
      describe(now);
      for (const { now: shown, drawing, history, show, bounds, title } of gauges) {
        shown.textContent = history.at(-1) === null ? "–" : show(history.at(-1));
        drawing.replaceChildren(sparkline([...Array(KEPT - history.length).fill(null), ...history], bounds));
        drawing.setAttribute("title", title);
      }
      const rate = (name, labels, per = 1) => (seconds ? number((per * (growth(before, now, name, labels) ?? NaN)) / seconds, 1) : "–");
      devices.fill(now.all("jrm_device_busy_ratio").map(({ labels, value }) => [labels.worker, labels.device, percent(value), bytes(now.sum("jrm_feature_cache_bytes", labels) ?? 0)]));
      const sent = [...now.by("jrm_wire_requests_total", "wire")].map(([wire, count]) => [`wire ${wire}`, rate("jrm_wire_requests_total", { wire }), count.toLocaleString("en")]);
      const own = [...now.by("jrm_http_requests_total", "route")].filter(([route]) => /score|explain|compute|infer|rerank|mode/.test(route));
      wires.fill([...own.map(([route, count]) => [route, rate("jrm_http_requests_total", { route }), count.toLocaleString("en")]), ...sent]);
      const failed = [["jrm_candidates_total", "outcome", ""], ["jrm_rejections_total", "reason", " (refused)"], ["jrm_explanations_total", "outcome", " (critique)"]];
      errors.fill(failed.flatMap(([name, label, note]) =>
        [...now.by(name, label)].filter(([code, count]) => count > 0 && code !== "ok").map(([code, count]) => [code + note, rate(name, { [label]: code }, 60), count.toLocaleString("en")])));
    },
  };
}

function uptime(seconds) {
  if (!(seconds >= 0)) return null;
  if (seconds < 90) return plural(Math.round(seconds), "second");
  if (seconds < 5400) return plural(Math.round(seconds / 60), "minute");
  return seconds < 172_800 ? plural(Math.round(seconds / 3600), "hour") : plural(Math.round(seconds / 86_400), "day");
}

function tabled(title, columns) {
  const body = h("tbody");
  const table = h("table", {}, h("caption", {}, title), h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)))), body);
  return {
    root: table,
    fill(rows) {
      const cells = rows.length ? rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell)))) : [h("tr", {}, h("td", { colspan: columns.length, class: "hint" }, "none"))];
      body.replaceChildren(...cells);
    },
  };
}

/** Small drawings as inline SVG. Shapes are stretched to their box; text stays outside of them, in HTML. */

import { h, number, s } from "./dom.js";

/** The class that gives a dimension its colour; the reward itself has the colour of the ink. */
export const tint = (name, dimensions) => (name === "reward" ? "tint-reward" : `tint-${dimensions.indexOf(name) % 6}`);

function stretched(name, width, height, ...children) {
  const viewBox = `0 0 ${width} ${height}`;
  return s("svg", { class: name, viewBox, preserveAspectRatio: "none", "aria-hidden": "true" }, ...children);
}

/** A domain around values that has 0 in it, or, with `zero` false, only the values. */
export function domain(values, zero = true) {
  const known = values.filter(Number.isFinite);
  const low = known.reduce((a, b) => Math.min(a, b), zero ? 0 : Infinity); // there may be more than a call may have
  const high = known.reduce((a, b) => Math.max(a, b), zero ? 0 : -Infinity);
  if (!known.length) return [0, 1];
  const margin = high > low ? 0.04 * (high - low) : Math.max(0.5, 0.1 * Math.abs(high));
  return [low < 0 || !zero ? low - margin : 0, high > 0 || !zero ? high + margin : 0];
}

const scale = ([low, high], size) => (value) => ((value - low) / (high - low || 1)) * size;
const line = (x1, y1, x2, y2, name) => s("line", { x1, y1, x2, y2, class: name });

/** A mean as a bar from zero, its standard deviation as a whisker. */
export function bar(mean, std, range) {
  const x = scale(range, 100);
  const zero = x(Math.min(Math.max(0, range[0]), range[1]));
  const shapes = [
    s("rect", { x: Math.min(zero, x(mean)), y: 2, width: Math.abs(x(mean) - zero), height: 8, class: "fill" }),
    line(zero, 0, zero, 12, "axis"),
  ];
  if (std !== null) {
    const [left, right] = [x(mean - std), x(mean + std)];
    const ends = [left, right].map((end) => line(end, 3, end, 9, "whisker"));
    shapes.push(line(left, 6, right, 6, "whisker"), ...ends);
  }
  return stretched("bar", 100, 12, ...shapes);
}

/** Values over time; gaps where a value is null. `bounds` fixes the lowest and the highest that is drawn. */
export function sparkline(values, bounds = null, name = "spark") {
  const [low, high] = bounds ?? domain(values);
  const y = scale([low, high], 28);
  const x = (index) => (values.length > 1 ? (100 * index) / (values.length - 1) : 100);
  return stretched(name, 100, 30, line(0, 29, 100, 29, "axis"), path(values, x, (value) => 29 - y(value), "curve"));
}

function path(values, x, y, name) {
  let pen = "M";
  let drawn = "";
  values.forEach((value, index) => {
    if (!Number.isFinite(value)) return (pen = "M");
    drawn += `${pen}${x(index).toFixed(2)} ${y(value).toFixed(2)}`;
    if (pen === "M") drawn += "h.01"; // a point of its own is seen, too
    return (pen = "L");
  });
  return s("path", { d: drawn, class: name });
}

/** The area between two rows of values, piece by piece where there are gaps. */
function band(lows, highs, x, y, name) {
  const pieces = [];
  let piece = [];
  lows.forEach((low, index) => {
    if (Number.isFinite(low)) piece.push(index);
    if (piece.length && (!Number.isFinite(low) || index === lows.length - 1)) {
      const top = piece.map((at) => `${x(at).toFixed(2)} ${y(highs[at]).toFixed(2)}`);
      const bottom = piece.map((at) => `${x(at).toFixed(2)} ${y(lows[at]).toFixed(2)}`).reverse();
      // One bucket alone has no width: a little is given to it.
      const alone = piece.length === 1 ? `H${(x(piece[0]) + 0.6).toFixed(2)}V${y(lows[piece[0]]).toFixed(2)}` : "";
      pieces.push(`M${top.join("L")}${alone}L${bottom.join("L")}Z`);
      piece = [];
    }
  });
  return s("path", { d: pieces.join(""), class: name });
}

/** Of a bucket, in this order. */
export const QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95];

/**
 * A distribution over time: the bands between the 5th and 95th and the 25th and 75th percentile, and the median.
 *
 * @param {(number | null)[][]} buckets its QUANTILES, or as many nulls
 * @param {string} label what a screen reader says of it
 * @param {(index: number) => string} describe a bucket in words, shown for the one that the pointer or arrow keys reach
 */
export function bands(buckets, label, describe) {
  const row = (q) => buckets.map((bucket) => bucket[QUANTILES.indexOf(q)] ?? NaN);
  const range = domain([...row(0.05), ...row(0.95)], false);
  const size = scale(range, 100);
  const y = (value) => 100 - size(value);
  const x = (index) => (buckets.length > 1 ? (300 * index) / (buckets.length - 1) : 150);
  const cursor = line(0, 0, 0, 100, "cursor");
  const drawing = stretched(
    "bands", 300, 100,
    range[0] < 0 && range[1] > 0 && line(0, y(0), 300, y(0), "axis"),
    band(row(0.05), row(0.95), x, y, "outer"),
    band(row(0.25), row(0.75), x, y, "inner"),
    path(row(0.5), x, y, "curve"),
    cursor,
  );
  const readout = h("p", { class: "readout" }, "");
  const last = buckets.length - 1;
  let at = last;
  const show = (index) => {
    at = Math.min(Math.max(index, 0), last);
    cursor.setAttribute("transform", `translate(${x(at)} 0)`);
    drawing.classList.add("pointed");
    readout.textContent = describe(at);
    plot.setAttribute("aria-valuenow", at);
    plot.setAttribute("aria-valuetext", describe(at) || "nothing");
  };
  const hide = () => {
    drawing.classList.remove("pointed");
    readout.textContent = "";
  };
  const plot = h(
    "div",
    {
      class: "plot", role: "slider", tabindex: "0", "aria-label": label,
      "aria-valuemin": 0, "aria-valuemax": last, "aria-valuenow": last, "aria-valuetext": describe(last) || "nothing",
      onpointermove: (event) => {
        const box = plot.getBoundingClientRect();
        show(Math.round(((event.clientX - box.left) / box.width) * last));
      },
      onpointerleave: hide,
      onfocus: () => plot.matches(":focus-visible") && show(at),
      onblur: hide,
      onkeydown: (event) => {
        const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        show(next);
      },
    },
    drawing,
    h("span", { class: "tick high" }, number(range[1], 1)),
    h("span", { class: "tick low" }, number(range[0], 1)),
  );
  return h("div", { class: "banded" }, plot, readout);
}

/** Each reward of a group as a tick on one axis; the best and the worst stand out. */
export function strip(rewards, range) {
  const x = scale(range, 100);
  const best = Math.max(...rewards);
  const worst = Math.min(...rewards);
  const name = (reward) => (reward === best ? "best" : reward === worst ? "worst" : "tick");
  const ticks = [...rewards].sort((a, b) => a - b).map((reward) => line(x(reward), 2, x(reward), 14, name(reward)));
  return stretched("strip", 100, 16, line(0, 8, 100, 8, "axis"), ...ticks);
}

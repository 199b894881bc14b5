/** The text format of /metrics, as far as this server writes it, and what follows from two readings. */

/**
 * @typedef {{name: string, labels: Record<string, string>, value: number}} Sample
 */

/**
 * @param {string} text
 * @returns {Sample[]}
 */
export function parse(text) {
  const samples = [];
  for (const [, name, labels = "", value] of text.matchAll(/^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/gm)) {
    const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)];
    const plain = (quoted) => quoted.replace(/\\(.)/g, (_, escaped) => (escaped === "n" ? "\n" : escaped));
    samples.push({
      name,
      labels: Object.fromEntries(pairs.map(([, label, quoted]) => [label, plain(quoted)])),
      value: value === "+Inf" ? Infinity : value === "-Inf" ? -Infinity : Number(value),
    });
  }
  return samples;
}

/** One reading of all metrics. */
export class Reading {
  /**
   * @param {string} text
   * @param {number} at seconds
   */
  constructor(text, at) {
    this.at = at;
    /** @type {Map<string, Sample[]>} */
    this.samples = new Map();
    for (const sample of parse(text)) {
      if (!this.samples.has(sample.name)) this.samples.set(sample.name, []);
      this.samples.get(sample.name).push(sample);
    }
  }

  /** Samples of a name whose labels are these. */
  all(name, labels = {}) {
    const fits = (sample) => Object.entries(labels).every(([label, value]) => sample.labels[label] === value);
    return (this.samples.get(name) ?? []).filter(fits);
  }

  /** The sum of them, or null where there are none. */
  sum(name, labels = {}) {
    const samples = this.all(name, labels);
    return samples.length ? samples.reduce((total, { value }) => total + value, 0) : null;
  }

  /** Samples by the value of one label, added up. */
  by(name, label) {
    const sums = new Map();
    for (const { labels, value } of this.all(name)) sums.set(labels[label], (sums.get(labels[label]) ?? 0) + value);
    return sums;
  }
}

/** How much a counter grew from one reading to the next; null when it was not there, or the server is a new one. */
export function growth(before, now, name, labels = {}) {
  if (!before || before.sum("process_start_time_seconds") !== now.sum("process_start_time_seconds")) return null;
  const value = now.sum(name, labels);
  return value === null ? null : value - (before.sum(name, labels) ?? 0);
}

/** The quantile of what a histogram counted between two readings, interpolated within its bucket; null for nothing. */
export function quantile(before, now, name, q, labels = {}) {
  if (!growth(before, now, `${name}_count`, labels)) return null;
  const edges = new Map();
  for (const [reading, sign] of [[now, 1], [before, -1]]) {
    for (const sample of reading.all(`${name}_bucket`, labels)) {
      const edge = sample.labels.le === "+Inf" ? Infinity : Number(sample.labels.le);
      edges.set(edge, (edges.get(edge) ?? 0) + sign * sample.value);
    }
  }
  const sorted = [...edges].sort(([a], [b]) => a - b);
  const wanted = q * sorted.at(-1)[1];
  let [low, below] = [0, 0];
  for (const [edge, count] of sorted) {
    const inside = (wanted - below) / (count - below);
    if (count >= wanted && count > below) return edge === Infinity ? low : low + (edge - low) * inside;
    [low, below] = [edge, count];
  }
  return null;
}

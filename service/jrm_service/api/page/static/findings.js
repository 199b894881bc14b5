/** Puts the numbers of /v1/watch into words. Pure functions. */

import { number, percent, plural, signed, words } from "./dom.js";

const FAR = 0.5; // standard deviations of the first hour
const COLLAPSED = 0.6; // of the first hour's spread within groups
const FLAT = 0.2; // share of groups without spread
const FAILING = 0.05; // share of edits without a score
const ENOUGH = 200; // edits, below which a comparison says little

/** Whether a shift is worth a look, rounded to one digit as it is shown. */
export const isFar = (shift) => Math.abs(Number((shift ?? 0).toFixed(1))) >= FAR;

const sentence = (text) => text[0].toUpperCase() + text.slice(1);

/** Whether both windows hold enough edits and do not overlap: until then drift says nothing. */
export function isCompared({ first_hour: first, now }) {
  return Boolean(first) && Math.min(scored(first), scored(now)) >= ENOUGH && now.start > first.start;
}

const scored = ({ candidates, errors }) => candidates - errors;

/**
 * @param {{first_hour: any, now: any, drift: any}} window
 * @returns {{kind: "warn" | "good" | "", text: string}[]} the most telling first; never empty
 */
export function findings(window) {
  const { first_hour: first, now, drift } = window;
  if (!first) return [{ kind: "", text: "No groups yet. Score something, or start your trainer." }];
  const since = first.complete ? "since the first hour" : "since the beginning";
  const spreads = `from ${number(first.group_std)} to ${number(now.group_std)}`;
  const listed = (moves) => moves.map(({ name, shift }) => `${name} ${signed(shift, 1)}σ`).join(", ");
  const reward = { name: "reward", shift: drift.reward?.shift };
  const moved = Object.entries(drift.dimensions ?? {}).map(([name, { shift }]) => ({ name: words(name), shift }));
  const compared = isCompared(window);
  const far = compared ? [reward, ...moved].filter(({ shift }) => isFar(shift)) : [];
  const better = far.filter((move) => move !== reward && move.shift > 0);
  const lost = far.filter((move) => move !== reward && move.shift < 0);
  const warnings = [];
  const warn = (text) => warnings.push({ kind: "warn", text: sentence(text) });
  if (better.length && lost.length) {
    warn(`${listed(better)} ${since}, ${listed(lost)}: one is bought with the other. Look at the pictures.`);
  }
  if (far.includes(reward) && reward.shift > 0 && now.group_std <= COLLAPSED * first.group_std) {
    const trick = "edits of a group become alike, as they do when a policy has found a trick. Look at the pictures.";
    warn(`${listed([reward])} ${since}, while the spread within groups fell ${spreads}: ${trick}`);
  }
  if (now.no_spread_share >= FLAT) {
    const equal = "all their rewards are equal, and nothing can be learned from them.";
    warn(`${percent(now.no_spread_share)} of the newest groups have no spread: ${equal}`);
  }
  if (now.error_share >= FAILING) {
    warn(`${percent(now.error_share)} of the newest edits have no score. Status lists the errors.`);
  }
  if (warnings.length) return warnings;
  if (!compared) {
    const count = Math.min(first.candidates, now.candidates);
    return [{ kind: "", text: `${plural(count, "edit")} so far: too few yet to say how rewards move.` }];
  }
  if (far.length) {
    return [{ kind: "", text: sentence(`${listed(far)} ${since}; the spread within groups went ${spreads}.`) }];
  }
  const still = `no dimension has moved by ${FAR}σ or more ${since}, and rewards still vary within groups.`;
  return [{ kind: "good", text: `Nothing stands out: ${still}` }];
}

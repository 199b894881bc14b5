/** What the numbers of /v1/watch say, in words. Pure. */

import { number, percent, plural, signed, words } from "./dom.js";

const FAR = 0.5; // standard deviations of the first hour
const COLLAPSED = 0.6; // of the spread within groups that there was
const FLAT = 0.2; // share of groups without spread
const FAILING = 0.05; // share of edits without a score
const ENOUGH = 200; // edits, below which a comparison says little

/** Whether a shift is worth a look; as it is shown, with one digit. */
export const isFar = (shift) => Math.abs(Number((shift ?? 0).toFixed(1))) >= FAR;

const sentence = (text) => text[0].toUpperCase() + text.slice(1);

/**
 * @param {{first_hour: any, now: any, drift: any}} window
 * @returns {{kind: "warn" | "good" | "", text: string}[]} the most telling first; never empty
 */
export function findings({ first_hour: first, now, drift }) {
  if (!first) return [{ kind: "", text: "No group has come yet. Score something, or start your trainer." }];
  const found = [];
  const moved = Object.entries(drift.dimensions ?? {}).map(([name, { shift }]) => ({ name: words(name), shift }));
  const told = ({ name, shift }) => `${name} ${signed(shift, 1)}σ`;
  const since = first.complete ? "since the first hour" : "since the beginning";
  const up = moved.filter(({ shift }) => isFar(shift) && shift > 0);
  const down = moved.filter(({ shift }) => isFar(shift) && shift < 0);
  const reward = { name: "reward", shift: drift.reward?.shift };
  const spreads = `from ${number(first.group_std)} to ${number(now.group_std)}`;
  if (up.length && down.length) {
    found.push({ kind: "warn", text: sentence(`${up.map(told).join(", ")} ${since}, ${down.map(told).join(", ")}: one is bought with the other. Look at the pictures.`) });
  }
  if (isFar(reward.shift) && reward.shift > 0 && now.group_std <= COLLAPSED * first.group_std) {
    found.push({ kind: "warn", text: sentence(`${told(reward)} ${since}, while the spread within groups fell ${spreads}: edits of a group become alike, as they do when a policy has found a trick. Look at the pictures.`) });
  }
  if (now.no_spread_share >= FLAT) {
    found.push({ kind: "warn", text: `${percent(now.no_spread_share)} of the newest groups have no spread: all their rewards are equal, and nothing can be learned from them.` });
  }
  if (now.error_share >= FAILING) {
    found.push({ kind: "warn", text: `${percent(now.error_share)} of the newest edits have no score. Status lists the errors.` });
  }
  if (found.length) return found;
  if (now.candidates < ENOUGH || now.start <= first.start) {
    return [{ kind: "", text: `${plural(now.candidates, "edit")} so far: too few yet to say how rewards move.` }];
  }
  const far = [reward, ...moved].filter(({ shift }) => isFar(shift));
  if (far.length) {
    return [{ kind: "", text: sentence(`${far.map(told).join(", ")} ${since}; the spread within groups went ${spreads}.`) }];
  }
  return [{ kind: "good", text: `Nothing stands out: no dimension has moved by ${FAR}σ or more ${since}, and groups have spread.` }];
}

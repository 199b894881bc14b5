/** Shows the critique of an edit while it is written: sentences beside the picture, and their regions on it. */

import { events, request } from "./api.js";
import { tint } from "./charts.js";
import { h, hint, words } from "./dom.js";
import { image } from "./pictures.js";

/**
 * Asks for a critique and shows it. Aborting `signal` stops the writing on the server, too. On failure, the text so
 * far stays.
 *
 * @param {HTMLElement} place filled with it
 * @param {{source: Blob[], edited: Blob, instruction: string}} asked
 * @param {string} url of the edited picture
 * @param {string} name of the edit
 * @param {string[]} dimensions
 * @param {AbortSignal} signal
 */
export async function critique(place, asked, url, name, dimensions, signal) {
  const boxes = h("div", { class: "boxes" });
  const texts = h("div", { class: "texts", "aria-busy": "true" }, hint("Waiting for the first word …"));
  place.replaceChildren(h("div", { class: "pictured" }, image(url, name), boxes), texts);
  /** @type {Map<string, {raw: string, block: HTMLElement, text: HTMLElement}>} */
  const written = new Map();
  const about = (dimension) => {
    if (!written.size) texts.replaceChildren();
    if (!written.has(dimension)) {
      const text = h("p", { class: "writing" });
      const block = h("div", { class: `critique ${tint(dimension, dimensions)}` }, h("h3", {}, words(dimension)), text);
      texts.append(block);
      written.set(dimension, { raw: "", block, text });
    }
    return written.get(dimension);
  };
  try {
    await write(asked, signal, about, ({ block }, explanation) => finish(block, boxes, explanation));
  } finally {
    if (!written.size) texts.replaceChildren();
    for (const { text } of written.values()) text.classList.remove("writing");
    texts.removeAttribute("aria-busy");
  }
}

/** Reads a critique: `about` returns the entry of a dimension, `done` gets the entry and its final explanation. */
async function write(asked, signal, about, done) {
  const [edited, ...source] = await Promise.all([asked.edited, ...asked.source].map(dataUrl));
  const question = { ...(source.length && { source }), edited, instruction: asked.instruction, stream: true };
  const body = JSON.stringify(question);
  const headers = { "content-type": "application/json" };
  const response = await request("v1/explain", { method: "POST", headers, body, signal });
  for await (const event of events(response, signal)) {
    if (event.data === "[DONE]") break;
    const { dimension, delta, explanation } = JSON.parse(event.data);
    const entry = about(dimension);
    if (delta !== undefined) entry.text.textContent = reasoning((entry.raw += delta));
    else done(entry, explanation);
  }
}

/** @param {Blob} blob */
const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

/** The readable part so far of an unfinished `{"reasoning": "…`. */
export function reasoning(raw) {
  const [, quoted] = /"reasoning"\s*:\s*"((?:[^"\\]|\\(?:u[0-9a-fA-F]{4}|[^u]))*)/.exec(raw) ?? [];
  if (quoted === undefined) return raw.trimStart().startsWith("{") ? "…" : raw;
  try {
    return JSON.parse(`"${quoted}"`).replace(/<\|[^|]*\|>\s*/g, "").replace(/<\|?[^|>]*\|?$/, "");
  } catch {
    return quoted;
  }
}

function finish(block, boxes, explanation) {
  const title = block.firstChild;
  if (explanation.status === "error") {
    block.replaceChildren(title, h("p", { class: "problem" }, explanation.error?.message ?? "no critique"));
    return;
  }
  /** @type {Map<number, {sentences: HTMLElement[], box: HTMLElement}>} */
  const regions = new Map();
  const light = (id, on) => {
    const { sentences, box } = regions.get(id);
    for (const element of [...sentences, box]) element.classList.toggle("lit", on);
  };
  const lights = (id) => ({
    onpointerenter: () => light(id, true), onfocus: () => light(id, true),
    onpointerleave: () => light(id, false), onblur: () => light(id, false),
  });
  for (const { id, label, bbox_2d: [left, top, right, bottom] } of explanation.edit_regions ?? []) {
    const share = (value) => `${Math.min(Math.max(value / 10, 0), 100)}%`;
    const box = h(
      "button",
      {
        type: "button", class: `box ${block.className.replace("critique ", "")}`, "aria-label": `Region: ${label}`,
        style: { left: share(left), top: share(top), width: share(right - left), height: share(bottom - top) },
        onclick: () => regions.get(id).sentences[0]?.focus(), ...lights(id),
      },
      h("span", { class: "label" }, label),
    );
    regions.set(id, { sentences: [], box });
    boxes.append(box);
  }
  const sentences = (explanation.segments ?? []).map(({ region, text }) => {
    if (!regions.has(region)) return h("span", {}, text, " ");
    const { sentences, box } = regions.get(region);
    const sentence = h("span", {
      role: "button", tabindex: "0", class: "sentence", onclick: () => box.focus(),
      onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        box.focus();
      },
      ...lights(region),
    }, text);
    sentences.push(sentence);
    return h("span", {}, sentence, " ");
  });
  const note = explanation.status === "truncated" && hint("Cut off at the token limit.");
  block.replaceChildren(title, h("p", {}, ...sentences), note || "");
}

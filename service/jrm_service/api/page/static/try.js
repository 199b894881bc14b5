/** Try: a source, an instruction and edits become a ranking. What was typed and dropped stays, whatever happens. */

import { ApiError, form, json, mayAskAgain, request, Unreachable } from "./api.js";
import { announce, button, byId, bytes, h, hint, plural } from "./dom.js";
import { PictureField } from "./pictures.js";
import { Results } from "./results.js";

const MOST_EDITS = 24;

/**
 * @param {() => any} info what /v1/info said, or null
 * @param {() => boolean} explains whether critiques can be had
 * @returns {{use: (info: any) => void}} to be told what the checkpoint takes
 */
export function start(info, explains) {
  const instruction = /** @type {HTMLTextAreaElement} */ (byId("instruction"));
  const score = /** @type {HTMLButtonElement} */ (byId("score"));
  const busy = { abort: /** @type {AbortController | null} */ (null) };
  const source = new PictureField(byId("source"), { name: "Source", limit: 1, changed: refresh });
  const edits = new PictureField(byId("edits"), { name: "Edits", limit: MOST_EDITS, changed: refresh });
  const results = new Results(byId("results"), guarded);
  results.clear(invitation());

  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (busy.abort) busy.abort.abort();
    else submit();
  });
  byId("example").addEventListener("click", () => example());
  byId("clear").addEventListener("click", () => {
    busy.abort?.abort();
    for (const field of [source, edits]) field.clear();
    instruction.value = "";
    sayInstruction("");
    results.clear(invitation());
    source.input.focus();
  });
  instruction.addEventListener("input", () => sayInstruction(""));
  instruction.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || byId("try-view").hidden) return;
    event.preventDefault();
    const wantsSource = source.limit > 0 && !source.pictures.length && !edits.root.contains(document.activeElement);
    (wantsSource || source.root.contains(document.activeElement) ? source : edits).add(files);
  });
  for (const kind of ["dragover", "drop"]) {
    document.addEventListener(kind, (event) => event.preventDefault()); // a miss must not leave the page
  }

  function refresh() {
    const count = edits.pictures.length;
    score.textContent = busy.abort ? "Stop" : count ? `Score ${plural(count, "edit")}` : "Score";
  }

  function sayInstruction(problem) {
    byId("instruction-problem").textContent = problem;
    instruction.toggleAttribute("aria-invalid", problem !== "");
  }

  function invitation() {
    const given = "Give a source picture, what was asked for, and some edits of it.";
    const ranked = "They come back ranked: reward, dimensions with their sigma, how likely one is to beat another.";
    const start = button("Try the example", () => example(), { class: "primary" });
    const question = h("p", { class: "big" }, "Which edit is best?");
    return h("div", { class: "empty" }, question, h("p", {}, `${given} ${ranked}`), start);
  }

  /** The first thing that is missing, said where it is; or null. */
  function missing() {
    source.say(source.limit && !source.pictures.length ? "A source picture is needed." : "");
    sayInstruction(instruction.value.trim() ? "" : "Say what was asked for.");
    edits.say(edits.pictures.length ? "" : "At least one edit is needed.");
    const size = [...source.pictures, ...edits.pictures].reduce((total, { blob }) => total + blob.size, 0);
    const limit = info()?.limits?.max_body_bytes ?? Infinity;
    if (size > limit) edits.say(`${bytes(size)} of pictures; this server takes ${bytes(limit)} at once.`);
    return [source.input, instruction, edits.input].find((input) => input.hasAttribute("aria-invalid")) ?? null;
  }

  async function submit() {
    if (busy.abort) return;
    mayAskAgain();
    const field = missing();
    if (field) return field.focus();
    const asked = { source: [...source.pictures], edits: [...edits.pictures], instruction: instruction.value };
    busy.abort = new AbortController();
    refresh();
    announce(`Scoring ${plural(asked.edits.length, "edit")}`);
    results.root.setAttribute("aria-busy", "true");
    const place = h("div", { class: "outcome" });
    try {
      await guarded(() => ask(asked, place, busy.abort.signal), place, submit);
    } finally {
      busy.abort = null;
      results.root.removeAttribute("aria-busy");
      refresh();
    }
    if (place.childElementCount) results.clear(place);
  }

  async function ask(asked, place, signal) {
    const group = (part) => ({
      ...(asked.source.length && { source: asked.source.map(({ blob }) => part(blob)) }),
      instruction: asked.instruction, edits: asked.edits.map(({ blob }) => part(blob)),
    });
    const send = () => json("v1/score", { method: "POST", body: form((part) => ({ groups: [group(part)] })), signal });
    let reply;
    try {
      reply = await send().catch(async (error) => {
        if (!(error instanceof ApiError) || error.status !== 429) throw error;
        results.clear(place);
        await countDown(place, error, signal);
        return send();
      });
    } catch (error) {
      if (!(error instanceof ApiError) || !error.groups) throw error;
      reply = { groups: error.groups }; // nothing was scored, and each edit says why
    }
    const { scores } = reply.groups[0];
    const [{ error }] = scores;
    if (error?.param && scores.every((score) => score.error?.param === error.param)) {
      if (error.param.includes(".source")) source.say(error.message);
      if (error.param.includes(".instruction")) sayInstruction(error.message);
    }
    place.replaceChildren();
    announce(results.show(asked, scores, reply, explains()));
  }

  /** Waits as long as the server said, and shows how long that still is. */
  async function countDown(place, error, signal) {
    let left = error.retryAfter ?? 1;
    const seconds = h("strong", {}, "");
    const why = h("p", {}, `${error.message} `, h("code", {}, error.code));
    place.replaceChildren(h("div", { class: "notice wait" }, why, h("p", {}, "Trying once more in ", seconds, ".")));
    announce(`The server is busy. Trying once more in ${plural(left, "second")}.`);
    for (; left > 0; left -= 1) {
      seconds.textContent = `${left} s`;
      await new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, 1000);
        signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
      });
    }
    place.replaceChildren(hint("Trying once more …"));
  }

  /** Runs what may fail, and says in `place` what went wrong and what can be done: `again`, as `label` calls it. */
  async function guarded(work, place, again = null, label = "Score again") {
    try {
      await work();
    } catch (error) {
      if (error.name === "AbortError") return place.replaceChildren(hint("Stopped."));
      if (!(error instanceof ApiError) && !(error instanceof Unreachable)) throw error;
      if (error.param?.includes("instruction")) sayInstruction(error.message);
      const advice = adviceOn(error);
      place.replaceChildren(h(
        "div", { class: "notice bad", role: "alert" },
        h("p", {}, error.message, " ", error.code && h("code", {}, error.code)),
        advice && hint(advice),
        error.requestId && hint("Request ", h("code", {}, error.requestId)),
        again && error.status !== 400 && button(label, () => again()),
      ));
    }
  }

  async function example() {
    await guarded(async () => {
      const scene = await json("page/scene.json");
      const get = async (name) => ({ name: name.split("/").pop(), blob: await (await request(`page/${name}`)).blob() });
      const [shown, ...tried] = await Promise.all([scene.source, ...scene.edits].map(get));
      source.clear();
      edits.clear();
      instruction.value = scene.instruction;
      if (source.limit) await source.add([shown]);
      await edits.add(tried);
      await submit();
    }, results.root);
  }

  return {
    use(checkpoint) {
      const most = checkpoint.image?.max_sources ?? 1;
      source.allow(most, most > 1 ? "Sources, in order" : "Source");
    },
  };
}

/** What helps, if anything does. */
function adviceOn({ status, retryAfter }) {
  if (status === undefined) return "Nothing is lost: your pictures and the instruction are still here.";
  if (status === 503 && retryAfter) return `The server says to come back in ${plural(retryAfter, "second")}.`;
  if (status === 429) return "The server is overloaded. Try again in a moment.";
  return status === 413 ? "Take some pictures out, or smaller ones." : null;
}

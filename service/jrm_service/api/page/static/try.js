/** Try: a source, an instruction and edits become a ranking. What was typed and dropped stays, whatever happens. */

import { ApiError, connection, form, json, mayAskAgain, request, Unreachable } from "./api.js";
import { announce, byId, bytes, h, plural } from "./dom.js";
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
  const source = new PictureField(byId("source"), { name: "Source", hint: "Drop, paste or choose a picture", limit: 1, changed: refresh });
  const edits = new PictureField(byId("edits"), { name: "Edits", hint: `Drop, paste or choose up to ${MOST_EDITS}`, limit: MOST_EDITS, changed: refresh });
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
    score.classList.toggle("busy", busy.abort !== null);
  }

  function sayInstruction(problem) {
    byId("instruction-problem").textContent = problem;
    instruction.toggleAttribute("aria-invalid", problem !== "");
  }

  function invitation() {
    return h(
      "div", { class: "empty" },
      h("p", { class: "big" }, "Which edit is best?"),
      h("p", {}, "Give a source picture, what was asked for, and some edits of it. They come back ranked: the reward, every dimension with its uncertainty, and how probably one beats another."),
      h("button", { type: "button", class: "primary", onclick: () => example() }, "Try the example"),
    );
  }

  /** The first thing that is missing, said where it is; or null. */
  function missing() {
    source.say(source.limit && !source.pictures.length ? "A source picture is needed." : "");
    sayInstruction(instruction.value.trim() ? "" : "Say what was asked for.");
    edits.say(edits.pictures.length ? "" : "At least one edit is needed.");
    const size = [...source.pictures, ...edits.pictures].reduce((total, { blob }) => total + blob.size, 0);
    const limit = info()?.limits?.max_body_bytes ?? Infinity;
    if (size > limit) edits.say(`${bytes(size)} of pictures; this server takes ${bytes(limit)} at once.`);
    const fields = [[source.problem, source.input], [byId("instruction-problem"), instruction], [edits.problem, edits.input]];
    return fields.find(([problem]) => problem.textContent)?.[1] ?? null;
  }

  async function submit() {
    if (busy.abort) return;
    mayAskAgain();
    const problem = missing();
    if (problem) {
      problem.focus();
      return;
    }
    const asked = { source: [...source.pictures], edits: [...edits.pictures], instruction: instruction.value };
    busy.abort = new AbortController();
    refresh();
    announce(`Scoring ${plural(asked.edits.length, "edit")}`);
    results.root.setAttribute("aria-busy", "true");
    const place = h("div", { class: "outcome" });
    try {
      await guarded(() => ask(asked, place, busy.abort.signal), place, () => submit());
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
    for (const { error } of scores.filter((one) => one.error && scores.every((other) => other.error?.param === one.error.param))) {
      if (error.param?.includes(".source")) source.say(error.message);
      if (error.param?.includes(".instruction")) sayInstruction(error.message);
    }
    place.replaceChildren();
    announce(results.show(asked, scores, reply, explains()));
  }

  /** Waits as long as the server said, and shows how long that still is. */
  async function countDown(place, error, signal) {
    let left = error.retryAfter ?? 1;
    const seconds = h("strong", {}, "");
    place.replaceChildren(h("div", { class: "notice wait" }, h("p", {}, `${error.message} `, h("code", {}, error.code)), h("p", {}, "Trying once more in ", seconds, ".")));
    announce(`The server is busy. Trying once more in ${plural(left, "second")}.`);
    for (; left > 0; left -= 1) {
      seconds.textContent = `${left} s`;
      await new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, 1000);
        signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
      });
    }
    place.replaceChildren(h("p", { class: "hint" }, "Trying once more …"));
  }

  /** Runs what may fail, and says in `place` what went wrong and what can be done. */
  async function guarded(work, place, again = null) {
    try {
      await work();
    } catch (error) {
      if (error.name === "AbortError") {
        place.replaceChildren(h("p", { class: "hint" }, "Stopped."));
        return;
      }
      if (!(error instanceof ApiError) && !(error instanceof Unreachable)) throw error;
      const { said, hint } = explained(error);
      if (error.param?.includes("instruction")) sayInstruction(error.message);
      const repeat = again && error.status !== 400 && h("button", { type: "button", onclick: () => again() }, "Score again");
      place.replaceChildren(h("div", { class: "notice bad", role: "alert" },
        h("p", {}, said, error.code && " ", error.code && h("code", {}, error.code)),
        hint && h("p", { class: "hint" }, hint),
        error.requestId && h("p", { class: "hint" }, "Request ", h("code", {}, error.requestId)),
        repeat));
    }
  }

  async function example() {
    const button = byId("example");
    button.setAttribute("aria-busy", "true");
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
    button.removeAttribute("aria-busy");
  }

  return {
    use(checkpoint) {
      const most = checkpoint.image?.max_sources ?? 1;
      source.heading.textContent = most > 1 ? "Sources" : "Source";
      source.hint.textContent = most > 1 ? `Drop, paste or choose up to ${most}, in order` : "Drop, paste or choose a picture";
      source.allow(most);
      byId("try-view").classList.toggle("sourceless", most === 0);
    },
  };
}

/** An error for a person: what happened, and what helps. */
function explained(error) {
  if (error instanceof Unreachable) {
    return { said: error.message, hint: "Nothing is lost: your pictures and the instruction are still here." };
  }
  const hints = {
    401: "An API key is needed.",
    413: "Take some pictures out, or smaller ones.",
    429: "Still too much to do, after one more try.",
    503: error.retryAfter ? `The server says to come back in ${plural(error.retryAfter, "second")}.` : "",
    504: "It took too long; the server may be busy.",
  };
  return { said: error.message, hint: hints[error.status] ?? "" };
}

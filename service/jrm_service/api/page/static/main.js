/** The page: its three views as tabs, who is served, whether the server answers, and the dialog for the key. */

import { ApiError, askKeysWith, connection, json, text, Unreachable } from "./api.js";
import { byId, h } from "./dom.js";
import { Reading } from "./prometheus.js";
import * as statusView from "./status.js";
import * as tryView from "./try.js";
import * as watchView from "./watch.js";

const POLL_MS = 2000;
const HIDDEN = "by a server whose /metrics a proxy keeps to itself";

let info = null;
/** Whether critiques are available, as far as is known. */
let explains = false;
/** The state of the server for which /v1/info was last read or refused for good; null if it must be read again. */
let learned = null;
let learning = false;

askKeysWith(keyDialog);
const trying = tryView.start(() => info, () => explains);
const watching = watchView.start();
const status = statusView.start();
tabs([...document.querySelectorAll('[role="tab"]')]);
const GONE = "The server does not answer. This page tries again by itself; what you typed stays.";
connection.addEventListener("down", () => say(GONE));
connection.addEventListener("up", () => say(""));
poll();

/** Reads /metrics while the page is shown, and /v1/info whenever another checkpoint may be served. */
async function poll() {
  for (;;) {
    try {
      const reading = new Reading(await text("metrics"), performance.now() / 1000);
      connection.set(true);
      const model = reading.all("jrm_model_info")[0]?.labels.fingerprint ?? null;
      const ready = reading.all("jrm_ready").every(({ value }) => value === 1);
      explains = (reading.sum("jrm_ready", { part: "explain" }) ?? 0) > 0;
      state(ready ? "ready" : "loading");
      learn(`${model} ${ready}`);
      status.reading(reading);
    } catch (error) {
      if (!(error instanceof ApiError) && !(error instanceof Unreachable)) throw error;
      const hidden = error instanceof ApiError && error.status < 500; // a proxy that keeps /metrics to itself
      connection.set(hidden);
      state(!hidden ? "down" : info ? "ready" : "loading");
      if (hidden) learn(HIDDEN);
      else learned = null;
      status.missing(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    while (document.hidden) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

/** Who is served, unless that is known of `served` already. What may pass is asked again with the next poll. */
async function learn(served) {
  if (learning || learned === served) return;
  learning = true;
  try {
    if (served === HIDDEN) explains = await offersCritiques();
    info = await json("v1/info");
    learned = served;
  } catch (error) {
    if (!(error instanceof ApiError) && !(error instanceof Unreachable)) throw error;
    byId("model").textContent = error instanceof ApiError ? error.message : "no answer";
    byId("fingerprint").textContent = "";
    const passes = error instanceof Unreachable || error.status === 429 || error.status >= 500;
    if (!passes) learned = served; // without a key, for instance
    return;
  } finally {
    learning = false;
  }
  byId("model").textContent = info.model;
  byId("fingerprint").textContent = info.fingerprint.slice(0, 8);
  byId("fingerprint").title = info.fingerprint;
  for (const view of [trying, status]) view.use(info);
}

/** Without /metrics. Where /health/ready is kept back, too, critiques are offered, and asking for one says why not. */
async function offersCritiques() {
  try {
    return "explain" in (await json("health/ready")).parts;
  } catch (error) {
    if (error instanceof ApiError && error.status < 500) return true;
    throw error;
  }
}

function state(name) {
  byId("state").dataset.state = name;
  const text = { ready: "ready", loading: "not ready", down: "does not answer" }[name];
  byId("state").replaceChildren(h("span", { class: "unseen" }, text));
}

function say(problem) {
  byId("banner").textContent = problem;
  byId("banner").hidden = !problem;
}

/** Tabs as the ARIA practices have them: one tab stop, arrows move and show. The address says which is shown. */
function tabs(all) {
  const hashOf = (tab) => tab.id.replace("tab-", "#"); // of no element: the first Tab key is to begin at the top
  const show = (tab, focus = false) => {
    for (const each of all) {
      const shown = each === tab;
      each.setAttribute("aria-selected", String(shown));
      each.tabIndex = shown ? 0 : -1;
      byId(each.getAttribute("aria-controls")).hidden = !shown;
    }
    if (focus) tab.focus();
    watching.show(tab.id === "tab-watch");
    history.replaceState(null, "", hashOf(tab));
  };
  all.forEach((tab, index) => {
    tab.addEventListener("click", () => show(tab));
    tab.addEventListener("keydown", (event) => {
      const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: -1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      show(all.at(next % all.length), true);
    });
  });
  const named = () => all.find((tab) => hashOf(tab) === location.hash);
  addEventListener("hashchange", () => named() && show(named()));
  show(named() ?? all[0]);
}

/** Asks for an API key. `refused`: the last one was not right. */
function keyDialog(refused) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  const key = /** @type {HTMLInputElement} */ (byId("key"));
  byId("key-problem").textContent = refused ? "The server does not know this key." : "";
  key.toggleAttribute("aria-invalid", refused);
  key.value = "";
  return new Promise((resolve) => {
    const done = new AbortController();
    const finish = (value) => {
      done.abort();
      dialog.close();
      resolve(value);
      if (value !== null) learned = null; // try again what was refused without a key
    };
    const listen = (target, type, act) => target.addEventListener(type, act, { signal: done.signal });
    listen(byId("key-form"), "submit", (event) => {
      event.preventDefault();
      if (/^[!-~]+$/.test(key.value.trim())) finish(key.value.trim());
      else byId("key-problem").textContent = "A key is letters, digits and signs without spaces.";
    });
    listen(byId("key-cancel"), "click", () => finish(null));
    listen(dialog, "cancel", (event) => {
      event.preventDefault();
      finish(null);
    });
    dialog.showModal();
  });
}

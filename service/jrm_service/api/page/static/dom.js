/** Elements and words. What comes from a caller or the server becomes a text node: nothing here reads HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 */

/**
 * An HTML element. Attributes that are null or false are left out, functions are listeners ("onclick"), `vars` are CSS
 * custom properties and `style` properties, set through the CSSOM, which a policy without unsafe-inline allows.
 *
 * @param {string} name
 * @param {Record<string, any>} [attributes]
 * @param {...Child} children
 * @returns {HTMLElement}
 */
export function h(name, attributes = {}, ...children) {
  return /** @type {HTMLElement} */ (filled(document.createElement(name), attributes, children));
}

/**
 * The same for SVG.
 *
 * @param {string} name
 * @param {Record<string, any>} [attributes]
 * @param {...Child} children
 * @returns {SVGElement}
 */
export function s(name, attributes = {}, ...children) {
  return /** @type {SVGElement} */ (filled(document.createElementNS(SVG, name), attributes, children));
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, set] of Object.entries(value)) element.style.setProperty(name, set);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false).map(asNode));
  return element;
}

const asNode = (child) => (child instanceof Node ? child : document.createTextNode(String(child)));

/** A paragraph of small print. */
export const hint = (...children) => h("p", { class: "hint" }, ...children);

/** A button that does not submit. */
export const button = (label, onclick, attributes = {}) =>
  h("button", { type: "button", onclick, ...attributes }, label);

/** @param {string} id */
export const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** Says something to people who hear the page. */
export function announce(text) {
  byId("live").textContent = text;
}

/** A number with a true minus; NaN and null are a dash. */
export function number(value, digits = 2) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const rounded = value.toFixed(digits);
  return (Number(rounded) === 0 ? rounded.replace("-", "") : rounded).replace("-", "−");
}

export const signed = (value, digits = 2) => (Number(value?.toFixed(digits)) > 0 ? "+" : "") + number(value, digits);
export const spread = (mean, std) => number(mean) + (std === null || std === undefined ? "" : ` ± ${number(std)}`);
export const percent = (share, digits = 0) => (Number.isFinite(share) ? `${number(100 * share, digits)}%` : "–");
export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
export const words = (name) => name.replaceAll("_", " ");
export const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString([], { hour12: false });

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  return count < 1e6 ? `${number(count / 1e3, 0)} KB` : `${number(count / 1e6, count < 1e7 ? 1 : 0)} MB`;
}

/** A probability that is not certain is never shown as 0% or 100%. */
export function chance(p) {
  if (!Number.isFinite(p)) return "–";
  if (p > 0.995 && p < 1) return ">99%";
  return p < 0.005 && p > 0 ? "<1%" : percent(p);
}

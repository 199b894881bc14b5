/** A place for pictures: dropped, pasted or chosen, shown as thumbnails, each of which can be taken out. */

import { announce, button, bytes, h, plural } from "./dom.js";

/**
 * @typedef {object} Picture
 * @property {string} name as its file is called
 * @property {Blob} blob its bytes, read already: a file that changes on disk later is still this picture
 */

/** Object URLs that are given back together. */
export class ObjectUrls {
  #urls = new Set();

  /** @param {Blob} blob */
  of(blob) {
    const url = URL.createObjectURL(blob);
    this.#urls.add(url);
    return url;
  }

  release() {
    for (const url of this.#urls) URL.revokeObjectURL(url);
    this.#urls.clear();
  }
}

/** The picture, or what stands for one that no browser can draw (PPM, or no picture at all). */
export function image(url, alt, attributes = {}) {
  const undrawn = h("span", { class: "undrawn", role: "img", "aria-label": `${alt}: no preview` }, "no preview");
  const drawn = h("img", {
    src: url, alt, decoding: "async", ...attributes,
    onerror: () => drawn.replaceWith(undrawn),
  });
  return drawn;
}

export class PictureField {
  /** @type {Picture[]} */
  pictures = [];
  #urls = new ObjectUrls();

  /**
   * @param {HTMLElement} root filled with the field
   * @param {{name: string, limit: number, changed: () => void}} options
   */
  constructor(root, { name, limit, changed }) {
    this.root = root;
    this.limit = limit;
    this.changed = changed;
    const id = root.id;
    this.heading = h("span", {}, name);
    this.count = h("span", { class: "count" });
    this.hint = h("span", { class: "hint" });
    this.input = /** @type {HTMLInputElement} */ (
      h("input", {
        type: "file", id: `${id}-files`, class: "unseen", accept: "image/png,image/jpeg,image/webp,.ppm",
        multiple: true, "aria-describedby": `${id}-problem`,
        onchange: () => this.add([...this.input.files]).then(() => (this.input.value = "")),
      })
    );
    this.problem = h("p", { id: `${id}-problem`, class: "problem" });
    this.list = h("ul", { class: "thumbs", role: "list" });
    const drop = h(
      "label",
      {
        class: "drop", for: this.input.id,
        ondragover: (event) => {
          event.preventDefault();
          drop.classList.add("over");
        },
        ondragleave: () => drop.classList.remove("over"),
        ondrop: (event) => {
          event.preventDefault();
          drop.classList.remove("over");
          this.add([...event.dataTransfer.files]);
        },
      },
      h("span", { class: "name" }, this.heading, this.count),
      this.hint,
    );
    root.replaceChildren(this.input, drop, this.list, this.problem);
    this.#draw();
  }

  /** @param {(File | Picture)[]} files those over the limit are left out, and it is said */
  async add(files) {
    const room = Math.max(0, this.limit - this.pictures.length);
    const single = this.limit === 1 && files.length === 1;
    const wanted = files.slice(0, single ? 1 : room);
    const left = files.length - wanted.length;
    this.say(left ? `${plural(this.limit, "picture")} at most: ${plural(left, "file")} left out.` : "");
    const read = await Promise.allSettled(wanted.map(asPicture));
    const pictures = read.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
    const unread = wanted.filter((_, index) => read[index].status === "rejected");
    if (unread.length) this.say(`It could not be read: ${unread.map((file) => file.name).join(", ")}`);
    this.pictures = single ? pictures : [...this.pictures, ...pictures].slice(0, this.limit);
    this.#changed();
  }

  clear() {
    this.pictures = [];
    this.say("");
    this.#changed();
  }

  /** How many are taken; 0 hides the field. */
  allow(limit, name) {
    this.limit = limit;
    this.heading.textContent = name;
    this.root.hidden = limit === 0;
    this.pictures = this.pictures.slice(0, limit);
    this.#changed();
  }

  /** @param {string} problem shown with the field, or "" */
  say(problem) {
    this.problem.textContent = problem;
    this.input.toggleAttribute("aria-invalid", problem !== "");
  }

  #draw() {
    this.#urls.release();
    const items = this.pictures.map((picture, index) =>
      h(
        "li", {},
        image(this.#urls.of(picture.blob), picture.name, { title: `${picture.name}, ${bytes(picture.blob.size)}` }),
        button("×", () => this.#remove(index), { class: "remove", "aria-label": `Take out ${picture.name}` }),
      ),
    );
    this.list.replaceChildren(...items);
    this.list.hidden = !items.length;
    this.hint.textContent = `Drop, paste or choose ${this.limit > 1 ? `up to ${this.limit}` : "a picture"}`;
    this.count.textContent = this.limit > 1 ? `${items.length} of ${this.limit}` : "";
  }

  #changed() {
    this.#draw();
    this.changed();
  }

  #remove(index) {
    const [gone] = this.pictures.splice(index, 1);
    this.say("");
    this.#changed();
    announce(`${gone.name} taken out`);
    const buttons = this.list.querySelectorAll("button");
    (buttons[Math.min(index, buttons.length - 1)] ?? this.input).focus();
  }
}

/** @returns {Promise<Picture>} */
async function asPicture(file) {
  if ("blob" in file) return file;
  return { name: file.name || "pasted picture", blob: new Blob([await file.arrayBuffer()], { type: file.type }) };
}

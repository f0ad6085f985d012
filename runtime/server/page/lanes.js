// The lanes of a request graph: branches stand side by side below their fork, texts fill in as they come.

import { make } from "./dom.js";

export class LaneView {
  #lanes = new Map();
  #parents = new Map();
  #pieces = new Map();
  #slots = [];
  #arguments;

  constructor(graph, values) {
    this.#arguments = values;
    for (const { op } of graph.nodes) {
      this.#lanes.set(op.lane, [...(this.#lanes.get(op.lane) ?? []), op]);
      for (const child of op.type === "fork" ? op.children : []) this.#parents.set(child, [op.lane, op.node]);
    }
    this.box = this.#lane(0, "");
  }

  /** Show one event of the program. */
  take(event) {
    const piece = this.#pieces.get(event.node);
    if (!piece) return;
    if (event.type === "delta") {
      piece.classList.add("busy");
      piece.append(event.text);
    }
    if (event.type === "value") {
      piece.classList.remove("busy");
      piece.classList.add("done");
      piece.textContent = event.texts.join(" ⏐ ");
      if (event.choices) piece.after(choices(event));
      this.#fill(event);
    }
    if (event.type === "failed") {
      piece.classList.remove("busy");
      piece.classList.add("failed");
      piece.textContent = event.error.message;
    }
  }

  /** Nothing more will come. */
  end() {
    for (const piece of this.#pieces.values()) piece.classList.remove("busy");
  }

  #lane(id, name) {
    const box = make("div", { class: "lane", role: "group", "aria-label": name || "main lane" });
    if (name) box.append(make("h3", { text: name }));
    for (const op of this.#lanes.get(id) ?? []) {
      if (op.type === "fork") {
        box.append(make("div", { class: "fork" }, ...op.children.map((child) => this.#lane(child, `branch ${child}`))));
      } else {
        box.append(...this.#op(op));
      }
    }
    return box;
  }

  #op(op) {
    if (op.type === "begin") return [make("span", { class: "mark", text: op.role })];
    if (op.type === "join") return [make("span", { class: "mark", text: op.mode === "append" ? "joined, texts appended" : "joined" })];
    if (op.type === "text") return [make("span", { class: "said" }, ...op.parts.map((part) => this.#part(op, part)))];
    if (op.type === "gen" || op.type === "select") {
      const piece = make("span", { class: `piece ${op.type}`, "data-name": op.name, title: op.name });
      this.#pieces.set(op.node, piece);
      return [piece];
    }
    return [];
  }

  #part(op, part) {
    if (typeof part === "string") return document.createTextNode(part);
    const known = part.type === "arg" ? this.#arguments[part.name] : undefined;
    const slot = make("span", { class: "slot", text: known ?? `{${part.name}}` });
    if (known !== undefined) slot.classList.add("known");
    if (part.type === "var") {
      const source = this.#source(part, op.node);
      if (source !== undefined) this.#slots.push({ slot, source });
    }
    return slot;
  }

  /** The node whose value a part of `reader` reads: its lane's latest, or what the lane inherited. */
  #source(part, reader) {
    let [lane, end] = [part.lane ?? 0, reader];
    while (lane !== undefined) {
      const found = (this.#lanes.get(lane) ?? []).filter((op) => op.name === part.name && op.node < end).at(-1);
      if (found) return found.node;
      [lane, end] = this.#parents.get(lane) ?? [];
    }
    return undefined;
  }

  /** A value that later texts read. */
  #fill(event) {
    for (const { slot, source } of this.#slots) {
      if (source !== event.node) continue;
      slot.textContent = event.texts[0];
      slot.classList.add("known");
    }
  }
}

function choices(event) {
  return make("span", { class: "choices" }, ...event.choices.map((one) =>
    make("span", { class: one.text === event.texts[0] ? "taken" : "" },
      `${one.text.trim()} `, make("meter", { value: one.probability, min: 0, max: 1, "aria-hidden": "true" }),
      ` ${(one.probability * 100).toFixed(0)} %`)));
}

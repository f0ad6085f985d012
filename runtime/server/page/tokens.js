// An answer as tokens: each one coloured by where it comes from, with its alternatives beside it.

import { $, make } from "./dom.js";

const decode = (bytes) => new TextDecoder().decode(Uint8Array.from(bytes));

/** A token's text with what cannot be seen made visible. */
const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";

/** Shows the tokens of one answer in `box`; arrow keys walk through them. */
export class TokenView {
  constructor(box) {
    this.box = box;
    this.tokens = [];
    this.picked = -1;
    this.decoder = new TextDecoder();
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-describedby", "tip");
    box.addEventListener("keydown", (event) => this.#walk(event));
    box.addEventListener("focus", () => this.#pick(Math.max(0, this.picked)));
    box.addEventListener("blur", () => this.#pick(-1));
    box.addEventListener("pointerover", (event) => {
      const place = event.target.dataset?.place;
      if (place !== undefined) this.#show(Number(place));
    });
    box.addEventListener("pointerleave", () => { $("tip").hidden = true; });
  }

  /** Append tokens of `details`, with their entries of `logprobs` where there are some. */
  add(tokens, entries = []) {
    const spans = tokens.map((token, i) => {
      const kind = token.forced ? "forced" : "generated";
      const text = this.decoder.decode(Uint8Array.from(token.bytes), { stream: true });
      const span = make("span", { class: `token ${kind}`, text });
      span.dataset.place = this.tokens.length;
      this.tokens.push({ span, kind, bytes: token.bytes, id: token.id, entry: entries[i] });
      return span;
    });
    this.box.append(...spans);
  }

  get forced() {
    return this.tokens.filter((token) => token.kind === "forced").length;
  }

  #walk(event) {
    const last = this.tokens.length - 1;
    const to = {
      ArrowRight: this.picked + 1, ArrowLeft: this.picked - 1, Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape") $("tip").hidden = true;
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.#pick(Math.min(last, Math.max(0, to)));
  }

  #pick(place) {
    this.tokens[this.picked]?.span.classList.remove("picked");
    this.picked = place;
    this.tokens[place]?.span.classList.add("picked");
    if (place < 0) $("tip").hidden = true;
    else this.#show(place);
  }

  #show(place) {
    const token = this.tokens[place];
    if (!token) return;
    const tip = $("tip");
    tip.replaceChildren(make("p", { text: `${token.kind} · id ${token.id}` }), alternatives(token));
    tip.hidden = false;
    const at = token.span.getClientRects()[0] ?? token.span.getBoundingClientRect();
    const below = at.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - tip.offsetHeight - 6)}px`;
  }
}

function alternatives(token) {
  if (!token.entry) return make("code", { text: visible(decode(token.bytes)) });
  const same = (one) => String(one.bytes) === String(token.entry.bytes);
  const rows = [...token.entry.top_logprobs];
  if (!rows.some(same)) rows.push(token.entry);
  return make("ol", {}, ...rows.map((one) => {
    const share = Math.exp(one.logprob);
    return make("li", { class: same(one) ? "taken" : "" },
      make("code", { text: visible(decode(one.bytes)) }),
      make("meter", { value: share, min: 0, max: 1, "aria-hidden": "true" }),
      make("span", { class: "share", text: percent(share) }));
  }));
}

function percent(share) {
  const value = share * 100;
  if (value < 0.01) return "<0.01 %";
  return `${value.toFixed(value < 1 ? 2 : 1)} %`;
}

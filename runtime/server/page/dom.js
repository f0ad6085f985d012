// Elements from data. Text goes in as text: nothing here reads HTML.

export const $ = (id) => document.getElementById(id);

/** An element with properties (class, text, and attributes) and children. */
export function make(name, { class: style, text, ...attributes } = {}, ...children) {
  const element = document.createElement(name);
  if (style) element.className = style;
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** A list of terms and values; terms without a value are left out. */
export function facts(pairs, style) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null);
  return make("dl", { class: style }, ...known.map(([term, value]) =>
    make("div", {}, make("dt", { text: term }), make("dd", { text: String(value) }))));
}

/** Says what went wrong above everything; "" takes it away. */
export function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

export function seconds(value) {
  if (value < 1) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  return `${value.toFixed(2)} s`;
}

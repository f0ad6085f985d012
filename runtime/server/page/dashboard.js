// The dashboard: one request a second while it is looked at, drawn as numbers, lines and a tree.

import { Refusal, getJson } from "./api.js";
import { $, facts, make, seconds } from "./dom.js";
import { spark } from "./spark.js";

const EVERY_MS = 1000;
const KEPT = 60;
const RATE_OVER = 4; // answers; counters of other processes come in once a second

const count = (value) => (value ?? 0).toLocaleString("en");

export function startDashboard() {
  new Dashboard().start();
}

class Dashboard {
  #answers = [];
  #timer = 0;
  #shown = false;

  start() {
    document.addEventListener("tab", (event) => {
      this.#shown = event.detail === "dashboard";
      this.#again(0);
    });
    document.addEventListener("visibilitychange", () => this.#again(0));
  }

  #again(wait) {
    clearTimeout(this.#timer);
    if (this.#shown && !document.hidden) this.#timer = setTimeout(() => this.#poll(), wait);
  }

  async #poll() {
    try {
      const answer = await getJson("/v1/overview");
      const last = this.#answers.at(-1);
      // A server that was started again counts from zero.
      if (last && answer.clock_s < last.clock_s) this.#answers = [];
      this.#answers = [...this.#answers, answer].slice(-KEPT);
      this.#draw();
      $("state").classList.toggle("stale", answer.status !== "ready");
    } catch (error) {
      $("state").classList.add("stale");
      const said = error instanceof Refusal ? error.message : "The server does not answer.";
      $("state").replaceChildren(make("span", { text: said }));
    }
    this.#again(EVERY_MS);
  }

  #draw() {
    const now = this.#answers.at(-1);
    $("tiles").replaceChildren(...this.#tiles(now));
    $("state").replaceChildren(facts([
      ["status", now.status],
      ["up", duration(now.uptime_s)],
      ["restarts", count(now.restarts)],
      ["programs so far", count(now.programs.opened)],
      ["requests ended", count(now.requests.finished)],
      ["stopped early", count(now.requests.aborted)],
      ["failed", count(now.requests.failed)],
    ], "counts"));
    drawMemory(now.cache);
    drawPrograms(now);
    drawTree(now.engine?.prefixes);
  }

  #tiles(now) {
    const { ttft_s: first, itl_s: between } = now.latency;
    const rates = this.#rates((one) => one.requests.sampled_tokens ?? 0);
    const found = this.#hits();
    const tiles = [
      tile("Tokens/s", rates.at(-1)?.toFixed(rates.at(-1) < 10 ? 1 : 0) ?? "–", "generated", rates),
      tile("Running", count(now.requests.running), `${count(now.requests.waiting)} waiting`,
        this.#answers.map((one) => one.requests.running ?? 0)),
      tile("Programs", count(now.programs.open), "open now", this.#answers.map((one) => one.programs.open)),
      tile("Cache hits", percent(found.at(-1)), `of prompt tokens · ${percent(now.cache.hit_rate)} since the start`, found),
      tile("First token", time(first.p50), tail(first), this.#answers.map((one) => one.latency.ttft_s.p50 ?? 0)),
      tile("Between tokens", time(between.p50), tail(between), this.#answers.map((one) => one.latency.itl_s.p50 ?? 0)),
    ];
    if (now.requests.drafted_tokens) tiles.push(this.#guesses(now.requests));
    if (now.adapters.loaded) tiles.push(this.#adapters(now.adapters));
    return tiles;
  }

  /** Guesses that were kept in a check: over a few answers, and where none was checked, none. */
  #guesses({ drafted_tokens: drafted, accepted_tokens: accepted }) {
    const kept = this.#answers.slice(1).map(({ requests }, i) => {
      const before = this.#answers[Math.max(0, i + 1 - RATE_OVER)].requests;
      const checks = requests.drafts - before.drafts;
      return checks > 0 ? (requests.accepted_tokens - before.accepted_tokens) / checks : 0;
    });
    const share = `${percent(accepted / drafted)} of ${count(drafted)} guesses since the start`;
    return tile("Guesses kept a check", kept.at(-1)?.toFixed(1) ?? "–", share, kept);
  }

  #adapters({ loaded, slots, slots_used: used, loads, evictions }) {
    const note = `of ${count(slots)} slots in use · ${count(loads)} ${loads === 1 ? "load" : "loads"} · ${count(evictions)} put out`;
    return tile(`Adapters (${count(loaded)})`, count(used), note,
      this.#answers.map((one) => one.adapters.slots_used ?? 0));
  }

  /** Growth by second, each over a few answers. */
  #rates(read) {
    return this.#answers.slice(1).map((one, i) => {
      const before = this.#answers[Math.max(0, i + 1 - RATE_OVER)];
      return Math.max(0, read(one) - read(before)) / (one.clock_s - before.clock_s);
    });
  }

  /** Share of prompt tokens found cached since the first answer kept; before any, since the start. */
  #hits() {
    const first = this.#answers[0].cache;
    return this.#answers.map(({ cache }) => {
      const asked = cache.queried - first.queried;
      return asked > 0 ? (cache.matched - first.matched) / asked : cache.hit_rate;
    });
  }
}

function tile(name, value, note, values) {
  return make("div", { class: "tile card" },
    make("h3", { text: name }),
    make("p", { class: "value", text: value }),
    make("p", { class: "note", text: note }),
    spark(values, `${name}, last minute`));
}

const time = (value) => (value === undefined ? "–" : seconds(value));
const tail = ({ p90, p99 }) => (p90 === undefined ? "no request in the last minute" : `p90 ${seconds(p90)} · p99 ${seconds(p99)}`);
const percent = (share) => (share === undefined ? "–" : `${(share * 100).toFixed(1)} %`);

function duration(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 60) return `${value.toFixed(0)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
}

function drawMemory(cache) {
  const all = cache.capacity_tokens ?? 0;
  const parts = [
    ["running", all - (cache.free_tokens ?? 0) - (cache.cached_tokens ?? 0)],
    ["kept", cache.cached_tokens ?? 0],
    ["free", cache.free_tokens ?? 0],
  ];
  const words = { running: "running requests", kept: "cached prefixes", free: "free" };
  $("memory").replaceChildren(
    make("div", { class: "stack", role: "img", "aria-label": parts.map(([name, tokens]) => `${words[name]}: ${tokens} tokens`).join(", ") },
      ...parts.map(([name, tokens]) => {
        const part = make("span", { class: name });
        part.style.flexGrow = all ? tokens / all : 0;
        return part;
      })),
    make("p", { class: "legend" }, ...parts.map(([name, tokens]) =>
      make("span", {}, make("i", { class: name }), `${words[name]} ${count(tokens)}`)),
    make("span", { text: `${count(cache.leases)} leases · ${count(cache.evicted)} tokens evicted` })));
}

function drawPrograms({ engine, programs }) {
  const rows = engine?.programs ?? [];
  $("programs-none").hidden = rows.length > 0;
  $("programs-none").textContent = engine ? "No program is running." : "The engine did not answer in time.";
  $("programs-more").textContent = programs.open > rows.length && rows.length ? `and ${count(programs.open - rows.length)} younger ones` : "";
  $("programs-rows").replaceChildren(...rows.map((one) => make("tr", {},
    make("td", { text: one.name || "(another key’s)" }),
    make("td", { text: duration(one.age_s) }),
    make("td", { text: count(one.lanes) }),
    make("td", { text: count(one.tokens) }))));
}

function drawTree(nodes) {
  const depths = [];
  const most = Math.max(1, ...(nodes ?? []).map((node) => node.end));
  $("tree-none").hidden = Boolean(nodes?.length);
  $("tree-none").textContent = nodes ? "Nothing is cached." : "The engine did not answer in time.";
  $("tree").replaceChildren(...inOrder(nodes ?? []).map(([place, node]) => {
    const depth = depths[place] = node.parent < 0 ? 0 : depths[node.parent] + 1;
    const bar = make("span", { class: node.locks ? "length held" : "length" });
    bar.style.width = `${Math.max(2, (node.tokens / most) * 100)}%`;
    const row = make("li", {},
      make("span", { class: "text", text: snippet(node) }),
      make("span", { class: "room" }, bar),
      make("span", { class: "number", text: `${count(node.tokens)} ${node.tokens === 1 ? "token" : "tokens"}` }),
      make("span", { class: "number", text: `${count(node.hits)} ${node.hits === 1 ? "hit" : "hits"}` }),
      make("span", { class: "number", text: node.locks ? "held" : "" }));
    row.style.setProperty("--depth", Math.min(depth, 6));
    return row;
  }));
}

const snippet = ({ text }) => (text === undefined ? "(text hidden: this server has API keys)" : visible(text));
const visible = (text) => text.replaceAll("\n", "↵").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));

/** [index, node], each node directly below its parent, most used first. */
function inOrder(nodes) {
  const below = new Map();
  nodes.forEach((node, place) => below.set(node.parent, [...(below.get(node.parent) ?? []), place]));
  const walk = (parent) => (below.get(parent) ?? []).flatMap((place) => [[place, nodes[place]], ...walk(place)]);
  return walk(-1);
}

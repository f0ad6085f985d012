// The chat: turns over /v1/chat/completions, with a constraint, as the server streams them.

import { Refusal, events } from "./api.js";
import { $, facts, make, notice, seconds } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { TokenView } from "./tokens.js";

const NUMBERS = ["temperature", "max_tokens", "top_p", "top_k", "min_p", "repetition_penalty", "seed"];
const ALTERNATIVES = 5;

export function startChat() {
  const chat = new Chat();
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    chat.ask();
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    chat.ask();
  });
  $("stop").addEventListener("click", () => chat.stop());
  $("clear").addEventListener("click", () => chat.clear());
  $("options").addEventListener("submit", (event) => event.preventDefault());
  $("constraint").addEventListener("change", showShape);
  for (const example of EXAMPLES) {
    const button = make("button", { type: "button", class: "link", text: example.name });
    button.addEventListener("click", () => choose(example));
    $("examples").append(button);
  }
  if (matchMedia("(max-width: 760px)").matches) $("settings").open = false;
}

/** Offer the models and adapters that the server has, where there is a choice. */
export function showWriters(models) {
  const chosen = $("writer").value;
  $("writer").replaceChildren(...models.map(({ id, parent }) =>
    make("option", { value: id, text: parent ? `${id} (adapter)` : id })));
  if (models.some(({ id }) => id === chosen)) $("writer").value = chosen;
  $("writers").hidden = models.length < 2;
}

function showShape() {
  $("shape").hidden = !$("constraint").value;
}

function choose(example) {
  $("constraint").value = example.kind;
  $("shape").value = example.shape;
  $("question").value = example.question;
  showShape();
  $("question").focus();
}

/** Fields of the request that the settings stand for. Throws where the constraint is no JSON. */
function settings() {
  const found = $("writer").value ? { model: $("writer").value } : {};
  for (const name of NUMBERS) {
    if ($(name).value !== "") found[name] = Number($(name).value);
  }
  if ($("alternatives").checked) Object.assign(found, { logprobs: true, top_logprobs: ALTERNATIVES });
  const kind = $("constraint").value;
  const shape = $("shape").value;
  if (kind === "json") found.structured_outputs = { json: JSON.parse(shape) };
  if (kind === "regex") found.structured_outputs = { regex: shape };
  if (kind === "choice") {
    found.structured_outputs = { choice: shape.split("\n").filter((line) => line.trim()) };
  }
  return found;
}

class Chat {
  #messages = [];
  #running = null;

  async ask() {
    const question = $("question").value.trim();
    if (!question || this.#running) return;
    let fields;
    try {
      fields = settings();
    } catch (error) {
      notice(`The JSON Schema is not JSON: ${error.message}`);
      return;
    }
    notice("");
    const system = $("system").value.trim();
    const before = system ? [{ role: "system", content: system }] : [];
    const messages = this.#messages; // a new conversation begins with others
    messages.push({ role: "user", content: question });
    $("question").value = "";
    $("empty").hidden = true;
    $("turns").append(make("div", { class: "turn user", text: question }));
    const turn = new Turn();
    const body = {
      messages: [...before, ...messages], stream: true, return_details: true, ...fields,
    };
    this.#running = new AbortController();
    show(true);
    try {
      for await (const chunk of events("/v1/chat/completions", body, this.#running.signal)) {
        turn.read(chunk);
      }
      turn.finish();
    } catch (error) {
      turn.fail(error);
    } finally {
      this.#running = null;
      show(false);
      if (turn.content) messages.push({ role: "assistant", content: turn.content });
      else messages.pop();
    }
  }

  /** Closing the connection ends the request on the server. */
  stop() {
    this.#running?.abort();
  }

  clear() {
    this.stop();
    this.#messages = [];
    for (const turn of $("turns").querySelectorAll(".turn")) turn.remove();
    $("empty").hidden = false;
    notice("");
    $("question").focus();
  }
}

function show(running) {
  $("send").hidden = running;
  $("stop").hidden = !running;
  (running ? $("stop") : $("question")).focus({ preventScroll: true });
}

/** One answer as it comes. */
class Turn {
  content = "";
  #started = performance.now();
  #first = 0;
  #finish = null;
  #details = null;

  constructor() {
    this.answer = make("div", { class: "answer busy", "aria-label": "Answer" });
    this.box = make("div", { class: "turn assistant" }, this.answer);
    this.view = new TokenView(this.answer);
    $("turns").append(this.box);
    follow();
  }

  read(chunk) {
    for (const choice of chunk.choices) {
      this.content += choice.delta.content ?? "";
      const details = choice.details ?? { tokens: [] };
      if (details.tokens.length && !this.#first) this.#first = performance.now();
      const near = nearEnd();
      this.view.add(details.tokens, choice.logprobs?.content);
      if (near) follow();
      if (choice.finish_reason) {
        this.#finish = choice.finish_reason;
        this.#details = details;
      }
    }
  }

  finish() {
    if (!this.#details) {
      this.fail(new Refusal(0, "The stream ended before the answer did. Send it again."));
      return;
    }
    this.answer.classList.remove("busy");
    const { meta, prompt } = this.#details;
    const made = this.view.tokens.length;
    const forced = this.view.forced;
    const ttft = meta.ttft_s ?? 0;
    const spent = (meta.latency_s ?? 0) - ttft;
    this.box.append(facts([
      ["prompt", meta.prompt_tokens ?? 0],
      ["cached", meta.cached_tokens ?? 0],
      ["forced", forced],
      ["generated", made - forced],
      ["accepted guesses", meta.drafted_tokens ? (meta.accepted_tokens ?? 0) : null],
      ["forwards", meta.forwards ?? 0],
      ["first token", seconds(ttft)],
      ["tokens/s", made > 1 && spent > 0 ? ((made - 1) / spent).toFixed(1) : null],
      ["ended by", this.#finish],
      ["adapter", meta.adapter || null],
    ], "counts"));
    this.box.append(make("details", { class: "prompt" },
      make("summary", { text: "Prompt as the model read it" }),
      make("pre", {}, make("span", { class: "cached", text: prompt.cached }), prompt.computed)));
    follow();
  }

  fail(error) {
    this.answer.classList.remove("busy");
    const made = this.view.tokens.length;
    if (error.name === "AbortError") {
      const spent = this.#first ? (performance.now() - this.#first) / 1000 : 0;
      this.box.append(facts([
        ["forced", this.view.forced],
        ["generated", made - this.view.forced],
        ["first token", this.#first ? seconds((this.#first - this.#started) / 1000) : null],
        ["tokens/s", made > 1 ? ((made - 1) / spent).toFixed(1) : null],
        ["ended by", "you"],
      ], "counts"));
    } else {
      this.box.append(make("p", { class: "failed", role: "alert", text: error.message }));
      if (error.status === 401) $("key-open").click();
    }
    follow();
  }
}

function nearEnd() {
  const box = $("turns");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 60;
}

function follow() {
  $("turns").scrollTop = $("turns").scrollHeight;
}

// The program tab: a request graph, its arguments, its lanes as they run, then its trace.

import { events, getJson } from "./api.js";
import { $, facts, make, seconds } from "./dom.js";
import { LaneView } from "./lanes.js";

const EXAMPLES = ["example-views.json", "example-drafts.json", "example-typed.json"];

export function startPrograms() {
  const runner = new Runner();
  $("graph").addEventListener("input", () => runner.read());
  $("run-form").addEventListener("submit", (event) => {
    event.preventDefault();
    runner.run();
  });
  $("run-stop").addEventListener("click", () => runner.stop());
  for (const file of EXAMPLES) {
    const name = file.replace(/^example-|\.json$/g, "");
    const button = make("button", { type: "button", class: "link", text: name });
    button.addEventListener("click", () => runner.load(file));
    $("graph-examples").append(button);
  }
}

class Runner {
  #graph = null;
  #running = null;

  async load(file) {
    const example = await getJson(`/page/${file}`);
    $("graph").value = JSON.stringify(example.graph, null, 1);
    $("about").textContent = example.about;
    this.read(example.arguments);
  }

  /** Take the graph of the field: its arguments become a form, its lanes are drawn. */
  read(given = {}) {
    this.#graph = null;
    const text = $("graph").value;
    let problem = "";
    try {
      if (text.trim()) this.#graph = checked(JSON.parse(text));
    } catch (error) {
      problem = `This is no request graph: ${error.message}`;
    }
    $("graph-problem").textContent = problem;
    $("run").disabled = !this.#graph;
    $("result").replaceChildren();
    this.#showTrace(null);
    $("arguments").replaceChildren(...(this.#graph?.args ?? []).map((name) => argument(name, given[name])));
    $("lanes-empty").hidden = Boolean(this.#graph);
    $("lanes").replaceChildren(...(this.#graph ? [new LaneView(this.#graph, {}).box] : []));
  }

  async run() {
    if (!this.#graph || this.#running) return;
    const values = Object.fromEntries([...$("arguments").querySelectorAll("input")].map((one) => [one.name, one.value]));
    const view = new LaneView(this.#graph, values);
    $("lanes").replaceChildren(view.box);
    $("result").replaceChildren();
    this.#showTrace(null);
    const body = { graph: streaming(this.#graph), arguments: values, stream: true, trace: "html" };
    const started = performance.now();
    this.#running = new AbortController();
    this.#show(true);
    try {
      for await (const event of events("/v1/programs", body, this.#running.signal)) {
        if (event.type === "result") this.#finish(event, (performance.now() - started) / 1000);
        else view.take(event);
      }
    } catch (error) {
      const said = error.name === "AbortError" ? "You stopped it." : error.message;
      $("result").replaceChildren(make("p", { class: "failed", role: "alert", text: said }));
      if (error.status === 401) $("key-open").click();
    } finally {
      view.end();
      this.#running = null;
      this.#show(false);
    }
  }

  /** Closing the connection ends the program on the server. */
  stop() {
    this.#running?.abort();
  }

  #finish(result, spent) {
    const { usage } = result;
    $("result").replaceChildren(
      facts([
        ["prompt", usage.prompt_tokens], ["cached", usage.cached_tokens], ["forced", usage.forced_tokens],
        ["generated", usage.output_tokens - usage.forced_tokens], ["forwards", usage.forwards], ["time", seconds(spent)],
      ], "counts"),
      make("dl", { class: "variables" }, ...Object.entries(result.variables).map(([name, value]) =>
        make("div", {}, make("dt", { text: name }), ...[value].flat().map((text) => make("dd", { text: text ?? "(no value)" }))))));
    this.#showTrace(result.trace);
  }

  #showTrace(page) {
    $("trace-box").hidden = page === null;
    $("trace").replaceChildren();
    if (page === null) return;
    const frame = make("iframe", { title: "Trace of the program", sandbox: "allow-scripts" });
    // The frame does not see which theme was chosen here.
    frame.srcdoc = page.replace("<html ", `<html data-theme="${document.documentElement.dataset.theme}" `);
    $("trace").append(frame);
  }

  #show(running) {
    $("run").hidden = running;
    $("run-stop").hidden = !running;
  }
}

function checked(graph) {
  if (!Array.isArray(graph?.nodes) || !graph.nodes.every((node) => node?.op?.type)) {
    throw new Error("it has no list of nodes with ops");
  }
  return { ...graph, args: graph.args ?? [] };
}

/** The same graph; every generated text comes piece by piece. */
function streaming(graph) {
  const nodes = graph.nodes.map((node) => (node.op.type === "gen" ? { ...node, op: { ...node.op, stream: true } } : node));
  return { ...graph, nodes };
}

function argument(name, value = "") {
  const field = make("input", { name, value, autocomplete: "off", required: true });
  return make("label", {}, make("code", { text: name }), field);
}

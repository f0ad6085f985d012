// Requests to this page's own server: JSON in and out, server-sent events, the key of this tab.

const SLOT = "branchline-key";

export const key = {
  get: () => sessionStorage.getItem(SLOT) ?? "",
  set: (value) => (value ? sessionStorage.setItem(SLOT, value) : sessionStorage.removeItem(SLOT)),
};

/** A refusal, in the server's own words; `status` is 0 where it came inside a stream. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function getJson(path, signal) {
  return (await send(path, { signal })).json();
}

/** Data of the events that answer a POST, parsed, as they come. */
export async function* events(path, body, signal) {
  const response = await send(path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json" },
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const blocks = (waiting + value).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const line = block.split("\n").find((one) => one.startsWith("data: "));
      if (line === undefined || line === "data: [DONE]") continue;
      const data = JSON.parse(line.slice(6));
      // An event of a program has a type, and may tell of one node's error.
      if (data.error && data.type === undefined) throw new Refusal(0, wordsOf(data));
      yield data;
    }
  }
}

async function send(path, options) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, { ...options, headers, credentials: "omit" });
  if (!response.ok) throw new Refusal(response.status, await refusalOf(response));
  return response;
}

async function refusalOf(response) {
  const text = await response.text();
  try {
    return wordsOf(JSON.parse(text));
  } catch {
    return text || `${response.status} ${response.statusText}`;
  }
}

function wordsOf(body) {
  const error = body.error ?? body;
  return typeof error === "string" ? error : (error.message ?? JSON.stringify(error));
}

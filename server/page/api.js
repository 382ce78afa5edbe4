// What the page asks of the server that it came from.

const KEY = "mlx-qwenvl-key"; // kept while this tab is open
const PROGRESS = /^: prefill (\d+)\/(\d+)/;

/** An answer that did not come, in words for people. */
export class Refused extends Error {
  /**
   * @param {string} message What went wrong.
   * @param {number} status Of HTTP; 0 where the server was not reached.
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Is it still running?", 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // A proxy's own page; its number has to do.
  }
  const wait = response.headers.get("Retry-After");
  if (wait && response.status !== 401) message += ` Try again in ${wait} s.`;
  return new Refused(message, response.status);
}

/** What runs there: `model`, `version`, `state` and `limits`. */
export async function look() {
  return (await ask("/")).json();
}

/**
 * Ask a question and hear the answer.
 *
 * @param {object} body Of a chat completion.
 * @param {AbortSignal} signal Ends the answer.
 * @param {(done: number, total: number) => void} reading Called while the prompt is read.
 * @yields {object} Chunks of the answer.
 */
export async function* answer(body, signal, reading) {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let isWhole = false;
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) break;
      const lines = (held + value).split("\n");
      held = lines.pop();
      for (const line of lines) {
        const progress = PROGRESS.exec(line);
        if (progress) reading(Number(progress[1]), Number(progress[2]));
        if (!line.startsWith("data: ")) continue;
        const data = line.slice("data: ".length);
        if (data === "[DONE]") isWhole = true;
        else yield checked(JSON.parse(data));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!isWhole) throw new Refused("The answer broke off: the server ended the connection.", 0);
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The answer broke off: the server cannot be reached any more.", 0);
  }
}

function checked(chunk) {
  if (chunk.error) throw new Refused(chunk.error.message, 200);
  return chunk;
}

/* Requests to the server, its event stream, and texts for its errors. */

class Refusal extends Error {
  constructor(status, message, wait) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

async function ask(path, options = {}) {
  const headers = { ...(options.body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Refusal(0, "");
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  let message = text.slice(0, 300);
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // the page of a proxy, or nothing: show the beginning
  }
  throw new Refusal(response.status, message || response.statusText, response.headers.get("Retry-After"));
}

/** The data of the events of a stream, parsed, until [DONE]. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      throw new Refusal(0, "");
    }
    if (part.done) throw new Refusal(0, "The answer ended early.");
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function problemOf(problem) {
  if (!(problem instanceof Refusal)) return { title: "The page failed", message: String(problem?.message ?? problem) };
  const titles = { 0: "The server does not answer", 401: "This server requires an API key", 429: "The server is busy", 503: "The server is stopping", 504: "The answer took too long" };
  const title = titles[problem.status] ?? (problem.status < 500 ? "The server rejected the request" : "The server failed");
  let message = problem.message;
  if (problem.status === 0) message = `${message} No response from ${location.host}. Is ouro-edge serve still running?`.trim();
  if (problem.status === 429 && problem.wait) message += ` Try again in ${problem.wait} s.`;
  return { title, message };
}

function requestOf(turns) {
  const messages = turns.map((turn) => ({ role: turn.role, content: turn.role === "user" ? turn.text : turn.said }));
  const system = settings.system.trim();
  if (system) messages.unshift({ role: "system", content: system });
  const request = { model: state.model?.id ?? "any", messages, stream: true, stream_options: { include_usage: true } };
  if (settings.lens) request.lens = 3;
  if (settings.temperature !== "") request.temperature = Number(settings.temperature);
  if (settings.most !== "") request.max_tokens = Number(settings.most);
  if (settings.threshold !== null && dialWorks()) {
    if (settings.threshold >= 1) request.loops = loops();
    else request.exit_threshold = settings.threshold;
  }
  return request;
}

const dialWorks = () => loops() > 1 && state.model?.ouro_edge?.has_gate !== false;

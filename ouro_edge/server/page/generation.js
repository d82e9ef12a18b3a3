/* One answer being generated: request, stream, redrawing, saving. */

/** Answer the last turn, which is a user's message. */
async function answer() {
  const reply = new Answer();
  const request = requestOf(state.turns);
  const controller = new AbortController();
  const begun = performance.now();
  state.turns.push(reply);
  state.running = { controller, answer: reply };
  say("Answering");
  hideCard();
  draw();
  if (matchMedia("(hover: hover)").matches) $("say").focus(); // the pressed button no longer exists
  $("scroll").scrollTop = $("scroll").scrollHeight;
  try {
    const response = await ask("/v1/chat/completions", { method: "POST", body: JSON.stringify(request), signal: controller.signal });
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Refusal(event.error.code === "timeout" ? 504 : 500, event.error.message);
      if (event.usage) reply.usage = event.usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      const { reasoning_content: thought, content } = choice.delta ?? {};
      const depth = choice.ouro_edge;
      const text = thought || content || "";
      if (depth) reply.add({ text, thought: !!thought, depth: depth.depth, exit: depth.exit_probs, lens: depth.lens });
      else if (text) reply.add({ text, thought: !!thought, depth: 0 });
      if (thought && content) reply.add({ text: content, depth: 0 }); // one token ended the reasoning and started the answer
      reply.finish = choice.finish_reason ?? reply.finish;
      redraw(reply);
    }
  } catch (problem) {
    if (problem.name === "AbortError") reply.finish = "abort";
    else reply.problem = problemOf(problem);
    if (problem.status === 401) wantKey();
  }
  reply.seconds = (performance.now() - begun) / 1000;
  const here = state.running?.answer === reply;
  if (here) state.running = null;
  if (!state.turns.includes(reply)) return;
  stick(draw);
  save();
  say(reply.problem ? "" : reply.said || "No answer"); // a problem is an alert, which screen readers read
}

let due = null;
/** Draw an answer in progress, at most once per frame. */
function redraw(reply) {
  due ??= requestAnimationFrame(() => {
    due = null;
    if (state.running?.answer === reply) stick(() => drawBody(reply, viewOf(reply)));
  });
}

/** Make a change that extends the page; a view at its end stays there. */
function stick(change) {
  const scroll = $("scroll");
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
  change();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
  placeCard();
}

function say(text) {
  $("live").textContent = text;
}

function save() {
  const plain = state.turns.map((turn) => (turn.role === "user" ? { role: "user", text: turn.text } : { ...turn, text: undefined, owner: undefined }));
  if (stored.write("chat", plain)) return;
  const short = plain.map((turn) => (turn.pieces ? { ...turn, pieces: turn.pieces.map((piece) => ({ ...piece, lens: undefined })) } : turn));
  stored.write("chat", short);
}

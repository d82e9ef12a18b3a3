/* Draws the state. */

function drawAnswer(answer) {
  const view = viewOf(answer);
  const running = state.running?.answer === answer;
  const body = view.querySelector(".body");
  body.hidden = !running && !answer.text && !answer.tokens.length;
  drawBody(answer, view);
  body.setAttribute("aria-busy", String(running));
  view.querySelector(".actions").hidden = running;
  view.querySelector(".stats").textContent = running ? "" : statsOf(answer);
  view.querySelector(".copy").hidden = !answer.text;
  const problem = view.querySelector(".problem");
  problem.hidden = !answer.problem;
  if (answer.problem) problem.replaceChildren(el("strong", { textContent: answer.problem.title }), answer.problem.message);
  const shown = answer.pieces.filter((piece) => piece.depth && piece.text.trim());
  const path = view.querySelector(".path");
  path.hidden = running || loops() < 2 || shown.length < 1 || shown.length > 3 || !shown[0].lens;
  if (!path.hidden) path.replaceChildren(...anatomy(shown.reduce((deepest, piece) => (piece.depth > deepest.depth ? piece : deepest))));
  const mix = view.querySelector(".mix");
  const depths = Array.from({ length: loops() }, (_, i) => answer.tokens.filter((piece) => piece.depth === i + 1).length);
  mix.hidden = running || loops() < 2 || answer.tokens.length < 8;
  mix.replaceChildren(...depths.map((n, i) => {
    const part = shade(el("i", { hidden: !n, title: `${count(n, "token")} of depth ${i + 1}` }), i + 1);
    part.style.flexGrow = n;
    return part;
  }));
}

function viewOf(turn) {
  let view = state.views.get(turn);
  if (!view) {
    view = copyOf(turn.role === "user" ? "t-user" : "t-answer");
    view.turn = turn;
    state.views.set(turn, view);
    $("log").append(view);
    if (turn.role === "user") view.querySelector(".said").textContent = turn.text;
  }
  return view;
}

/** Update the page to the state. */
function draw() {
  for (const [turn, view] of state.views) {
    if (state.turns.includes(turn)) continue;
    view.remove();
    state.views.delete(turn);
  }
  state.turns.forEach((turn) => (turn.role === "user" ? viewOf(turn) : drawAnswer(turn)));
  const last = state.turns.at(-1);
  for (const [turn, view] of state.views) {
    view.querySelector(".retry")?.toggleAttribute("hidden", turn !== last);
    view.querySelector(".edit")?.toggleAttribute("hidden", Boolean(state.running));
  }
  const busy = Boolean(state.running);
  document.body.classList.toggle("busy", busy);
  $("send").replaceChildren(copyOf(busy ? "t-stop" : "t-send"));
  $("send").setAttribute("aria-label", busy ? "Stop" : "Send");
  $("send").title = busy ? "Stop (Esc)" : "Send (Enter)";
  $("send").disabled = !busy && !$("say").value.trim();
  $("welcome").hidden = state.turns.length > 0 || !state.model;
  $("editing").hidden = !state.edited;
  $("new").disabled = !state.turns.length;
}

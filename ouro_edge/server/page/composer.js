/* Actions of the user: send, stop, retry, edit, copy. */

function send(text) {
  if (!text.trim() || state.running) return;
  if (state.edited) state.turns.length = state.turns.indexOf(state.edited);
  state.edited = null;
  state.turns.push({ role: "user", text: text.trim() });
  $("say").value = "";
  grow();
  answer();
}

function stop() {
  state.running?.controller.abort();
}

function retry() {
  if (state.running || state.turns.at(-1)?.role !== "assistant") return;
  state.turns.pop();
  answer();
}

function edit(turn) {
  if (state.running || !turn) return;
  state.edited = turn;
  $("say").value = turn.text;
  $("say").focus();
  grow();
  draw();
}

function unedit() {
  state.edited = null;
  $("say").value = "";
  grow();
  draw();
  $("say").focus();
}

function clear() {
  stop();
  Object.assign(state, { turns: [], running: null, edited: null });
  hideCard();
  draw();
  save();
  $("say").focus();
}

function grow() {
  const box = $("say");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

$("say").addEventListener("input", () => {
  grow();
  if (!state.running) $("send").disabled = !$("say").value.trim();
});
$("say").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send($("say").value);
  } else if (event.key === "ArrowUp" && !$("say").value) {
    event.preventDefault();
    edit(state.turns.findLast((turn) => turn.role === "user"));
  }
});
$("send").addEventListener("click", () => (state.running ? stop() : send($("say").value)));
$("unedit").addEventListener("click", unedit);
$("new").addEventListener("click", clear);
$("log").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const turn = button?.closest(".turn").turn;
  if (!button) return;
  if (button.matches(".retry")) retry();
  else if (button.matches(".edit")) edit(turn);
  else if (button.matches(".copy")) copy(turn.said, button);
  else if (button.matches(".copy-code")) copy(button.closest("figure").querySelector("code").textContent, button);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("settings").open) return;
  if (state.running) stop();
  else if (card.turn) hideCard();
  else if (state.edited) unedit();
});

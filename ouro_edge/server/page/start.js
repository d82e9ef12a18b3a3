/* Start: welcome text, model of the server, conversation of the last visit. Must be the last script. */

const FACTS = "Ada likes Ben. Ben likes Cleo. Cleo likes Dan.";
const PUZZLES = ["Ada likes who?", "Ada likes someone who likes who?", "Ada likes someone who likes someone who likes who?"];
const QUESTIONS = ["Why is the sky blue? Answer in two sentences.", "A train leaves at 14:50 and travels 95 minutes. When does it arrive?", "Explain recursion with a short Python example."];

function drawWelcome() {
  const nano = state.model.id === "Ouro-nano";
  $("intro").textContent =
    loops() > 1
      ? `A looped model runs the same layers up to ${loops()} times for every token; an exit rule decides when a token stops. ` +
        "The colour shows the depth of each token. Point at a token to see each loop's predictions."
      : "This model has a single loop: every token has the same depth.";
  if (nano) $("intro").append(" Ouro-nano, the built-in model, solves small puzzles: more hops need more loops.");
  const example = (text, ...content) => {
    const button = el("button", { type: "button" }, ...content);
    button.addEventListener("click", () => send(text));
    return button;
  };
  $("examples").replaceChildren(
    ...(nano
      ? PUZZLES.map((puzzle, i) => {
          const dots = Array.from({ length: i + 1 }, (_, hop) => shade(el("i"), hop + 1));
          const hops = el("span", { className: "hops" }, ...dots, el("span", { textContent: count(i + 1, "hop") }));
          return example(`${FACTS} ${puzzle}`, hops, el("span", { className: "facts", textContent: FACTS }), el("span", { textContent: puzzle }));
        })
      : QUESTIONS.map((question) => example(question, question))),
  );
}

/** Ask the server for its model. */
async function meet() {
  try {
    const models = await (await ask("/v1/models")).json();
    state.model = models.data[0];
    $("model").textContent = state.model.id;
    document.title = `${state.model.id} · ouro-edge`;
    drawWelcome();
  } catch (problem) {
    const { title } = problemOf(problem);
    $("model").textContent = title;
    if (problem.status === 401) wantKey();
    else setTimeout(meet, 4000);
  }
  drawDial();
  draw();
}

setTheme(stored.read("theme", null));
try {
  state.turns = stored.read("chat", []).map((turn) => (turn.role === "user" ? turn : new Answer(turn)));
} catch {
  state.turns = []; // stored by another version
}
drawDial();
draw();
$("scroll").scrollTop = $("scroll").scrollHeight;
meet();

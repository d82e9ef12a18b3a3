/* The text of an answer: Markdown with one span per token, coloured by depth. */

/** A function that adds text to an element as spans, one per token. */
function painter(answer) {
  return (parent, text, place) => {
    for (let i = 0; i < text.length; ) {
      const owner = answer.owner[place(i)];
      let end = i + 1;
      while (end < text.length && answer.owner[place(end)] === owner) end += 1;
      const depth = answer.pieces[owner]?.depth;
      const part = text.slice(i, end);
      const word = depth ? part.trimStart() : ""; // leading blanks are not coloured: colour would be visible at the end of a line
      parent.append(part.slice(0, part.length - word.length));
      if (word) parent.append(token(owner, depth, word));
      i = end;
    }
  };
}

function token(index, depth, text) {
  const span = shade(el("span", { className: "tok", textContent: text }), depth);
  span.dataset.i = index;
  return span;
}

/** Draw the text of an answer; blocks that can no longer change keep their elements. */
function drawBody(answer, view) {
  const body = view.querySelector(".body");
  const paint = painter(answer);
  const blocks = [];
  const { text, thoughts } = answer;
  if (thoughts) blocks.push({ kind: "thought", done: text.length > thoughts, lines: linesOf(text.slice(0, thoughts), 0) });
  blocks.push(...blocksOf(linesOf(text.slice(thoughts), thoughts)));
  const old = view.drawn ?? [];
  const drawn = blocks.map((block, i) => {
    const last = block.lines.at(-1);
    const name = [block.kind, block.lines[0]?.at, last && last.at + last.text.length, block.done].join(":");
    if (i < blocks.length - 1 && old[i]?.name === name) return old[i];
    return { name, node: block.kind === "thought" ? thinking(block, paint, old[i]?.node) : build(block, paint) };
  });
  drawn.forEach(({ node }, i) => {
    if (old[i]?.node !== node) old[i]?.node.replaceWith(node);
    if (!node.isConnected || node.parentNode !== body) body.append(node);
  });
  old.slice(drawn.length).forEach(({ node }) => node.remove());
  view.drawn = drawn;
  drawFoot(answer, body);
  mark();
}

/** The mark of the token that ended the answer, or of an answer in progress. */
function drawFoot(answer, body) {
  body.querySelectorAll(".foot").forEach((node) => node.remove());
  const end = answer.pieces.length - 1;
  const ended = answer.finish === "stop" && answer.pieces[end]?.depth && answer.pieces[end].text === "";
  const foot = state.running?.answer === answer ? el("span", { className: "wait" }) : ended ? token(end, answer.pieces[end].depth, "end") : null;
  if (!foot) return;
  if (ended) foot.classList.add("end");
  foot.classList.add("foot");
  const last = body.lastElementChild;
  (last?.tagName === "P" || /^H\d$/.test(last?.tagName) ? last : body).append(foot);
}

function thinking(block, paint, old) {
  const box = el("details", { open: old?.open ?? false }, el("summary", { textContent: block.done ? "Reasoning" : "Reasoning…" }));
  if (block.done || box.open) box.append(...blocksOf(block.lines).map((inner) => build(inner, paint)));
  return box;
}

/* Loops of one token, and statistics of an answer. */

/** The loops of a token: probability of stopping, and predictions of each loop. */
function anatomy(piece) {
  const grid = el("div", { className: "loops" });
  const chosen = piece.lens?.at(-1)?.[0]?.token;
  const said = piece.text || chosen;
  for (let loop = 1; loop <= loops(); loop += 1) {
    grid.append(el("span", { className: "n", textContent: `loop ${loop}` }));
    if (loop > piece.depth) {
      grid.append(el("span", { className: "out", textContent: "not needed" }));
      continue;
    }
    const p = piece.exit?.[loop - 1];
    const fill = shade(el("i"), loop);
    fill.style.width = `${(p ?? 0) * 100}%`;
    const would = shade(el("span", { className: "would" }), loop);
    (piece.lens?.[loop - 1] ?? []).forEach((candidate, rank) => {
      if (rank && candidate.prob < 0.001) return;
      const same = candidate.token === said;
      const name = el(rank ? "span" : "b", { className: same && !rank ? "same" : "", textContent: visible(candidate.token) });
      would.append(rank ? " · " : "", name, el("span", { textContent: " " + percent(candidate.prob) }));
    });
    would.title = would.textContent;
    grid.append(el("span", { className: "track", title: "probability of stopping here" }, fill), el("span", { className: "p", textContent: p == null ? "" : percent(p) }), would);
  }
  const name = visible(piece.text || (chosen ?? ""));
  const caption = el("p", { className: "caption" }, el("b", { textContent: name === "end" ? "End" : `“${name}”` }), loops() > 1 ? ` took ${piece.depth} of ${count(loops(), "loop")}` : "");
  return [caption, grid];
}

function statsOf(answer) {
  const tokens = answer.tokens;
  if (!tokens.length) return answer.finish === "abort" ? "stopped" : "";
  const usage = answer.usage;
  const mean = tokens.reduce((sum, piece) => sum + piece.depth, 0) / tokens.length;
  const run = usage?.ouro_edge?.loops_run ?? tokens.reduce((sum, piece) => sum + piece.depth, 0);
  const full = usage?.ouro_edge?.loops_full ?? tokens.length * loops();
  const seconds = usage?.ouro_edge?.seconds ?? answer.seconds ?? 0;
  const first = usage?.ouro_edge?.first_token_seconds ?? 0;
  const words = [count(tokens.length, "token")];
  if (tokens.length >= 8 && seconds > first) words.push(`${rounded((tokens.length - 1) / (seconds - first))} tokens/s`);
  else words.push(seconds < 1 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : `${rounded(seconds)} s`);
  const saved = full - run; // negative when pending loops of earlier answers ran
  const change = saved < 0 ? `${-saved} caught up` : `${saved} saved`;
  if (loops() > 1) words.push(`mean depth ${mean.toFixed(2)}`, `${run} loops run, ${change}`);
  if (answer.finish === "length") words.push("cut at the limit");
  if (answer.finish === "abort") words.push("stopped");
  return words.join(" · ");
}

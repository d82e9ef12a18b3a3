/* The card of a token, opened by pointer, click or arrow keys. */

const card = { turn: null, i: -1, pinned: false };

function spansOf(turn, i) {
  return state.views.get(turn)?.querySelectorAll(`.tok[data-i="${i}"]`) ?? [];
}

function mark() {
  document.querySelectorAll(".tok.on").forEach((span) => span.classList.remove("on"));
  if (card.turn) spansOf(card.turn, card.i).forEach((span) => span.classList.add("on"));
}

function showCard(turn, i, pinned) {
  const same = card.turn === turn && card.i === i;
  Object.assign(card, { turn, i, pinned });
  if (!same) $("tip").replaceChildren(...anatomy(turn.pieces[i]));
  $("tip").classList.toggle("pinned", pinned);
  $("tip").hidden = false;
  mark();
  placeCard();
}

function hideCard() {
  Object.assign(card, { turn: null, i: -1, pinned: false });
  $("tip").hidden = true;
  mark();
}

function placeCard() {
  if (!card.turn) return;
  const box = spansOf(card.turn, card.i)[0]?.getClientRects()[0];
  if (!box) return hideCard();
  const tip = $("tip");
  const { offsetWidth: width, offsetHeight: height } = tip;
  const above = box.top - height - 10;
  tip.style.left = `${Math.max(12, Math.min(innerWidth - width - 12, box.left + box.width / 2 - width / 2))}px`;
  tip.style.top = `${above >= 8 ? above : Math.min(box.bottom + 10, innerHeight - height - 8)}px`;
}

function tokenAt(target) {
  const span = target.closest?.(".tok");
  const view = span?.closest(".turn");
  return view ? { turn: view.turn, i: Number(span.dataset.i) } : null;
}

$("log").addEventListener("pointermove", (event) => {
  if (event.pointerType !== "mouse" || card.pinned) return;
  const found = tokenAt(event.target);
  if (found ? found.turn === card.turn && found.i === card.i : !card.turn) return;
  if (found) showCard(found.turn, found.i, false);
  else hideCard();
});
$("log").addEventListener("pointerleave", () => card.pinned || hideCard());
document.addEventListener("click", (event) => {
  if ($("tip").contains(event.target)) return;
  const found = tokenAt(event.target);
  if (!found || event.target.closest("a")) hideCard();
  else if (card.pinned && card.turn === found.turn && card.i === found.i) hideCard();
  else showCard(found.turn, found.i, true);
});
$("scroll").addEventListener("scroll", placeCard, { passive: true });
addEventListener("resize", placeCard);

$("log").addEventListener("keydown", (event) => {
  const body = event.target;
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  const step = steps[event.key];
  if (!body.classList.contains("body") || !step || event.ctrlKey || event.metaKey || event.altKey) return;
  const turn = body.closest(".turn").turn;
  const shown = [...body.querySelectorAll(".tok")].filter((span) => span.getClientRects().length);
  const order = [...new Set(shown.map((span) => Number(span.dataset.i)))];
  if (!order.length) return;
  event.preventDefault();
  const now = card.turn === turn ? order.indexOf(card.i) : -1;
  const next = Math.max(0, Math.min(order.length - 1, now < 0 && step < 0 && step > -Infinity ? order.length - 1 : now + step));
  spansOf(turn, order[next])[0].scrollIntoView({ block: "nearest" });
  showCard(turn, order[next], true);
  const piece = turn.pieces[order[next]];
  const would = piece.lens?.map((found, loop) => `loop ${loop + 1} ${visible(found[0].token)}, stops ${percent(piece.exit?.[loop] ?? 0)}`) ?? [];
  say(`${visible(piece.text)}: ${piece.depth} of ${count(loops(), "loop")}. ${would.join("; ")}`);
});
$("log").addEventListener("focusout", (event) => event.target.classList.contains("body") && hideCard());

/* Depth control, settings dialog, theme. */

function keep(change) {
  Object.assign(settings, change);
  stored.write("settings", settings);
  drawDial();
}

function drawDial() {
  const usual = state.model?.ouro_edge?.exit_threshold;
  const chosen = settings.threshold;
  const shown = chosen ?? usual ?? 1;
  $("dial").hidden = loops() < 2;
  $("threshold").disabled = !dialWorks();
  $("threshold").value = shown;
  $("exit").textContent = shown >= 1 ? `all ${loops()} loops` : `exit at ${shown.toFixed(2)}`;
  if (chosen === null && usual == null) $("exit").textContent = "as the server";
  $("threshold").setAttribute("aria-valuetext", $("exit").textContent);
  $("usual").setAttribute("aria-pressed", String(chosen === null));
  $("legend").setAttribute("aria-pressed", String(settings.tint));
  document.body.classList.toggle("tint", settings.tint && loops() > 1);
  const swatches = Array.from({ length: loops() }, (_, i) => shade(el("i", { textContent: i + 1 }), i + 1));
  $("legend").replaceChildren(el("span", { textContent: "loops" }), ...swatches);
}

$("threshold").addEventListener("input", () => keep({ threshold: Number($("threshold").value) }));
$("usual").addEventListener("click", () => keep({ threshold: null }));
$("legend").addEventListener("click", () => keep({ tint: !settings.tint }));

function openSettings() {
  for (const name of ["system", "temperature", "most"]) $(name).value = settings[name];
  $("lens").checked = settings.lens;
  $("key").value = key;
  if (!$("settings").open) $("settings").showModal();
}

function wantKey() {
  openSettings();
  $("needed").hidden = false;
  $("key").focus();
}

$("open").addEventListener("click", openSettings);
$("close").addEventListener("click", () => $("settings").close());
$("key").addEventListener("keydown", (event) => event.key === "Enter" && $("settings").close());
$("settings").addEventListener("click", (event) => event.target === $("settings") && $("settings").close());
$("settings").addEventListener("close", () => {
  const valid = (name) => ($(name).validity.valid ? $(name).value : "");
  keep({ system: $("system").value, temperature: valid("temperature"), most: valid("most"), lens: $("lens").checked });
  const changed = key !== $("key").value.trim();
  key = $("key").value.trim();
  stored.write("key", key, sessionStorage);
  $("needed").hidden = true;
  $("say").focus();
  if (!changed) return;
  meet();
  if (state.turns.at(-1)?.problem) retry();
});
$("forget").addEventListener("click", () => {
  for (const store of [localStorage, sessionStorage]) Object.keys(store).filter((name) => name.startsWith("ouro-edge.")).forEach((name) => store.removeItem(name));
  location.reload();
});

const dark = matchMedia("(prefers-color-scheme: dark)");
function setTheme(theme) {
  document.documentElement.toggleAttribute("data-theme", false);
  if (theme) document.documentElement.dataset.theme = theme;
}
$("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  setTheme(next);
  stored.write("theme", next);
});

// What the theme leaves out for keyboards and screen readers.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");

const TABLE = ".md-typeset__scrollwrap";

// A part that scrolls sideways can be focused, so that the arrow keys scroll it.
const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});

// The theme adds tables' frames and code blocks' buttons after this script has started.
function improve(root) {
  for (const part of root.querySelectorAll(`${TABLE}, .md-typeset pre > code`)) sizes.observe(part);
  for (const frame of root.querySelectorAll(TABLE)) {
    const columns = [...frame.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    frame.setAttribute("role", "group");
    frame.setAttribute("aria-label", `Table: ${columns.join(", ")}`);
  }
  // Each is a landmark without a name otherwise.
  for (const buttons of root.querySelectorAll("nav.md-code__nav")) buttons.setAttribute("role", "presentation");
}

const article = document.querySelector("article");
if (article) {
  improve(article);
  new MutationObserver(() => improve(article)).observe(article, { childList: true, subtree: true });
}

// What the theme leaves out for keyboards and screen readers.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
for (const part of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
  if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
}

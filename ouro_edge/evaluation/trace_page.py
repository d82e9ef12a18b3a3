"""Renders a trace as a self-contained HTML page: tokens tinted by depth, above the candidates of every loop."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ouro_edge.evaluation.trace import TracedToken

# Colours are those of the chat page, which a caller passes as `colours`; the values after the commas are for builds
# without it. --d is a depth from 0 to 1. A wide table scrolls in its frame, and the page does not.
_STYLE = """
:root{color-scheme:light dark}
body{font:1rem/1.6 var(--sans,system-ui,sans-serif);margin:2rem auto;max-width:70rem;padding:0 1rem;
background:var(--paper,Canvas);color:var(--ink,CanvasText)}
h1{font-size:1.25rem;font-weight:600;overflow-wrap:break-word}
[style*="--d"]{background:color-mix(in oklch,var(--deep,#b9a0ec) calc(var(--d)*100%),var(--shallow,#ddf1f0))}
.text{font-size:1.1rem;line-height:2;white-space:pre-wrap;overflow-wrap:break-word}
.text span{padding:.15em 0;border-radius:.2em}
.frame{overflow-x:auto;margin-top:2rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
td,th{padding:.2em .7em;text-align:left;vertical-align:top;border-bottom:1px solid var(--line,#8884)}
td{white-space:pre-wrap;overflow-wrap:anywhere;min-width:4.5rem}
td.deep{opacity:.55}td.here{font-weight:600}small{color:var(--muted,GrayText);white-space:nowrap}
"""


def page(traced: Sequence[TracedToken], title: str, colours: str = "") -> str:
    """An HTML document without scripts and external resources, all text escaped. `colours` sets CSS properties."""
    loops = len(traced[0].loops) if traced else 0
    text = "".join(
        f'<span style="--d:{_share(t.depth, loops)}" title="{t.depth} of {loops} loops">{_show(t.text)}</span>'
        for t in traced
    )
    head = "<tr><th>token<th>depth" + "".join(f"<th>loop {r + 1}" for r in range(loops)) + "</tr>"
    rows = "".join(_row(t) for t in traced)
    legend = " ".join(f'<span style="--d:{_share(r, loops)}"> {r} </span>' for r in range(1, loops + 1))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{colours}{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p class=text>{legend} loops</p><p class=text>{text}</p>"
        f"<div class=frame><table>{head}{rows}</table></div></html>\n"
    )


def _row(token: TracedToken) -> str:
    cells = []
    for r, (candidates, p) in enumerate(zip(token.loops, token.exit_probs, strict=True), start=1):
        shown = " ".join(f"{_show(text)} <small>{share:.0%}</small>" for _, text, share in candidates)
        kind = "here" if r == token.depth else "deep" if r > token.depth else ""
        stop = "" if p != p else f"<br><small>stops here: {p:.0%}</small>"
        cells.append(f'<td class="{kind}">{shown}{stop}')
    return f"<tr><td>{_show(token.text)}<td>{token.depth}{''.join(cells)}</tr>"


def _show(text: str) -> str:
    return html.escape(text)


def _share(depth: int, loops: int) -> str:
    """A depth as --d: 0 for one loop, 1 for all."""
    return f"{(depth - 1) / max(1, loops - 1):.3g}"

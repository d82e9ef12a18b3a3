"""Renders a trace as a self-contained HTML page: tokens tinted by depth, above the candidates of every loop."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ouro_edge.evaluation.trace import TracedToken

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;background:Canvas;color:CanvasText;
color-scheme:light dark}
.text{font-size:18px;line-height:2;white-space:pre-wrap}.text span{padding:.15em 0;border-radius:.2em;color:#111}
table{border-collapse:collapse;margin-top:2em;font-variant-numeric:tabular-nums}
td,th{padding:.2em .7em;text-align:left;border-bottom:1px solid #8884;white-space:pre}
td.deep{opacity:.45}td.here{font-weight:600}small{opacity:.7}
"""


def page(traced: Sequence[TracedToken], title: str) -> str:
    """An HTML document without scripts and external resources; all text is escaped."""
    loops = len(traced[0].loops) if traced else 0
    text = "".join(
        f'<span style="background:{_tint(t.depth, loops)}" title="{t.depth} of {loops} loops">{_show(t.text)}</span>'
        for t in traced
    )
    head = "<tr><th>token<th>depth" + "".join(f"<th>loop {r + 1}" for r in range(loops)) + "</tr>"
    rows = "".join(_row(t) for t in traced)
    legend = " ".join(f'<span style="background:{_tint(r, loops)}"> {r} </span>' for r in range(1, loops + 1))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p class=text>{legend} loops</p><p class=text>{text}</p>"
        f"<table>{head}{rows}</table></html>\n"
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


def _tint(depth: int, loops: int) -> str:
    """Pale green for one loop to deep orange for all."""
    share = (depth - 1) / max(1, loops - 1)
    return f"hsl({130 - 105 * share:.0f} 70% {88 - 23 * share:.0f}%)"

"""Shows tokens by exit depth: in colour, or by font weight where there is no colour. Uses rich.

Colours range from blue (one loop) over green to red (all loops), readable on dark and light backgrounds. Without
colour, shallow tokens are dim and deep tokens bold, the deepest underlined.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.style import Style
from rich.text import Text

from ouro_edge.runtime.events import Token
from ouro_edge.terminal.display.sanitize import clean

_MONOCHROME_STYLES = (Style(dim=True), Style(), Style(bold=True), Style(bold=True, underline=True))


def tint(depth: int, loops: int, console: Console) -> Style:
    """The style of a token with exit depth `depth` of `loops` loops."""
    share = (depth - 1) / max(1, loops - 1)
    if console.no_color or console.color_system is None:
        return _MONOCHROME_STYLES[round(share * (len(_MONOCHROME_STYLES) - 1))]
    red, green, blue = colorsys.hls_to_rgb((210 - 210 * share) / 360, 0.45, 0.75)
    return Style(color=f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}")


def legend(depths: Sequence[int], loops: int, console: Console) -> Text:
    """The meaning of the tints, with the number of tokens of each depth."""
    counts = Counter(depths)
    parts = []
    for depth in range(1, loops + 1):
        part = Text(f"{depth}: {counts[depth]}")
        part.stylize(tint(depth, loops, console))
        parts.append(part)
    return Text.assemble(("tokens by loops  ", "dim"), Text("  ").join(parts))


def tinted(tokens: Sequence[Token], loops: int, console: Console) -> Text:
    """The text of tokens, tinted by depth."""
    text = Text()
    for token in tokens:
        text.append(clean(token.text), tint(token.depth, loops, console))
    return text


def rows(tokens: Sequence[Token]) -> list[tuple[str, str, str]]:
    """Table rows: text, depth and exit probabilities of each token."""
    return [
        (repr(clean(token.text)), str(token.depth), " ".join("-" if p != p else f"{p:.0%}" for p in token.exit_probs))
        for token in tokens
    ]

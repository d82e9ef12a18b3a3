"""How deep each token was thought, for eyes: tints where there is colour, weight where there is none. Knows rich.

Colours go from blue (one loop) over green to red (all loops), readable on dark and on light ground. Where the user
or the terminal wants no colour, shallow tokens are dim and deep ones bold, the deepest underlined.
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

_WEIGHTS = (Style(dim=True), Style(), Style(bold=True), Style(bold=True, underline=True))


def tint(depth: int, loops: int, console: Console) -> Style:
    """The style of a token that took `depth` of `loops` loops."""
    share = (depth - 1) / max(1, loops - 1)
    if console.no_color or console.color_system is None:
        return _WEIGHTS[round(share * (len(_WEIGHTS) - 1))]
    red, green, blue = colorsys.hls_to_rgb((210 - 210 * share) / 360, 0.45, 0.75)
    return Style(color=f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}")


def legend(depths: Sequence[int], loops: int, console: Console) -> Text:
    """What the tints mean, with how many tokens had each."""
    counts = Counter(depths)
    parts = []
    for depth in range(1, loops + 1):
        part = Text(f"{depth}: {counts[depth]}")
        part.stylize(tint(depth, loops, console))
        parts.append(part)
    return Text.assemble(("tokens by loops  ", "dim"), Text("  ").join(parts))


def tinted(tokens: Sequence[Token], loops: int, console: Console) -> Text:
    """The text of tokens, each in its tint."""
    text = Text()
    for token in tokens:
        text.append(clean(token.text), tint(token.depth, loops, console))
    return text


def rows(tokens: Sequence[Token]) -> list[tuple[str, str, str]]:
    """For a table: text, depth and exit probabilities of each token."""
    return [
        (repr(clean(token.text)), str(token.depth), " ".join("-" if p != p else f"{p:.0%}" for p in token.exit_probs))
        for token in tokens
    ]

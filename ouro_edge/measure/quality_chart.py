"""A chart of a model's quality by depth, as SVG without scripts or fonts of its own."""

from __future__ import annotations

from html import escape

from ouro_edge.measure.quality import Quality

_WIDTH, _HEIGHT, _MARGIN = 480, 300, 56


def chart(found: Quality) -> str:
    """Divergence by depth, or perplexity without a model to compare with; exit rules are open circles."""
    compared = found.against is not None
    values = [s.divergence.mean if s.divergence is not None else s.perplexity for s in found.scores]
    depths = [score.depth for score in found.scores]
    most, deepest = max(values) or 1.0, max(1.0, *depths)

    def place(depth: float, value: float) -> tuple[float, float]:
        x = _MARGIN + (depth - 1) / max(1e-9, deepest - 1) * (_WIDTH - 2 * _MARGIN) if deepest > 1 else _WIDTH / 2
        return x, _HEIGHT - _MARGIN - value / (1.1 * most) * (_HEIGHT - 2 * _MARGIN)

    fixed = [place(d, v) for s, d, v in zip(found.scores, depths, values, strict=True) if s.name.startswith("depth ")]
    marks = []
    for score, depth, value in zip(found.scores, depths, values, strict=True):
        x, y = place(depth, value)
        fill = "#2563eb" if score.name.startswith("depth ") else "white"
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="#2563eb" stroke-width="2"/>')
        marks.append(f'<text x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{value:.4g}</text>')
        if score.name.startswith("depth "):
            marks.append(f'<text x="{x:.1f}" y="{_HEIGHT - _MARGIN + 18}" text-anchor="middle">{depth:g}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in fixed)
    what = f"KL against {found.against}, nats" if compared else "perplexity"
    bottom = _HEIGHT - _MARGIN
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_MARGIN}" y="24" font-size="14">{escape(found.model)}: {escape(what)}</text>',
        f'<path d="M{_MARGIN} {_MARGIN - 16}V{bottom}H{_WIDTH - _MARGIN}" fill="none" stroke="#888"/>',
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="2"/>',
        *marks,
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 14}" text-anchor="middle">loops</text>',
        "</svg>",
    )) + "\n"  # fmt: skip

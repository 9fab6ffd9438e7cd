"""Drawings of parameter-efficient methods, computed from the arrays that a method trains.

A drawing has three parts: the stack of blocks, of which those that the method touches are marked, one block with its
sites, and the arrays at a site, with sides that grow with the logarithm of their sizes. Colours come from the site's
style sheet, so one drawing serves light and dark pages. A new method has a drawing as soon as it is registered.
"""

import html
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

Shapes = Mapping[str, tuple[int, ...]]

# Narrow enough for a phone to show it at its size.
_WIDTH = 344
_SHOWN_SITES = 4

# Boxes of one block, (site, x, y, width), from the top down; y grows downwards.
_BLOCK = (
    ("ffn_norm", 110, 14, 224),
    ("ffn/down", 120, 46, 204),
    ("ffn/up", 120, 78, 204),
    ("attention_norm", 110, 122, 224),
    ("attention/output", 120, 154, 204),
    ("attention/query", 120, 186, 64),
    ("attention/key", 190, 186, 64),
    ("attention/value", 260, 186, 64),
)
_SUBLAYERS = (("ffn", 110, 38, 224, 72), ("attention", 110, 146, 224, 72))
_BLOCK_BOTTOM = 226


class Site(NamedTuple):
    """Sites of one kind.

    Attributes:
      name: The site's path, its number replaced by "i".
      count: Number of sites of this kind.
      arrays: Names and shapes of the arrays that are trained at one of them.
      in_place: Whether all of them take the place of the module's own arrays.
    """

    name: str
    count: int
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    in_place: bool


def kinds_of_sites(params: Shapes, delta: Mapping[str, Shapes]) -> list[Site]:
    """Groups the sites of a delta that differ only in the number of their block.

    Args:
      params: Shapes of the encoder's arrays by path.
      delta: Shapes of the trained arrays by site and name.

    Example:
      >>> kernels = {f"layer_{i}/up/kernel": (4, 8) for i in range(2)}
      >>> kinds_of_sites(kernels, {f"layer_{i}/up": {"a": (4, 1), "b": (1, 8)} for i in range(2)})
      [Site(name='layer_i/up', count=2, arrays=(('a', (4, 1)), ('b', (1, 8))), in_place=False)]
    """
    counts: dict[tuple[str, tuple[tuple[str, tuple[int, ...]], ...], bool], int] = {}
    for site, arrays in delta.items():
        named = tuple(arrays.items())
        in_place = bool(named) and all(params.get(f"{site}/{name}") == shape for name, shape in named)
        kind = re.sub(r"(layer_|layers/)\d+", r"\1i", site), named, in_place
        counts[kind] = counts.get(kind, 0) + 1
    return [Site(name, count, arrays, in_place) for (name, arrays, in_place), count in counts.items()]


def drawing(name: str, params: Shapes, delta: Mapping[str, Shapes]) -> str:
    """Returns the drawing of a method as an SVG element to stand in a page.

    Args:
      name: The method's name.
      params, delta: See `kinds_of_sites`.
    """
    depth = 1 + max((int(found[1]) for path in params if (found := re.match(r"layer_(\d+)/", path))), default=-1)
    kinds = kinds_of_sites(params, delta)
    arrays, height = _arrays(kinds, _BLOCK_BOTTOM + 22)
    marks = {kind.name.removeprefix("layer_i/"): _mark(kind) for kind in kinds if kind.name.startswith("layer_i/")}
    parts = [*_stack(depth, params, delta), *_block(marks), *arrays]
    trained = sum(kind.count for kind in kinds)
    says = f"{name}: {trained} sites have trained arrays" if trained else f"{name}: no array of the encoder is trained"
    return _svg(height, says, "\n".join(parts))


def _svg(height: float, says: str, body: str) -> str:
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    return f'<svg class="drawing" {size} role="img" aria-label="{html.escape(says)}">\n{body}\n</svg>'


def _mark(kind: Site) -> str:
    return "trained" if kind.in_place else "added"


def _box(x: float, y: float, width: float, height: float, style: str, text: str = "") -> str:
    shape = f'<rect class="{style}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4"/>'
    return shape + (_text(x + width / 2, y + height / 2 + 4, text, f"middle in-{style}") if text else "")


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text class="{style}" x="{x:g}" y="{y:g}">{html.escape(text)}</text>'


def _stack(depth: int, params: Shapes, delta: Mapping[str, Shapes]) -> Iterator[str]:
    """Yields the column of blocks over the embeddings, and a network beside them with a box at each block it reads."""

    def style(prefix: str) -> str:
        within = [(site, arrays) for site, arrays in delta.items() if f"{site}/".startswith(prefix)]
        if not within:
            return "frozen"
        own = all(params.get(f"{site}/{name}") == shape for site, arrays in within for name, shape in arrays.items())
        return "trained" if own else "added"

    beside = any(site.startswith(".layers/") for site in delta)
    width = 54 if beside else 84
    step = min(30.0, (_BLOCK_BOTTOM - 14 - 32) / max(depth, 1))
    if beside:
        yield f'<path class="line" d="M{width + 25} 14 V{_BLOCK_BOTTOM - 15} H{width + 6}"/>'
    for i in range(depth):
        y = _BLOCK_BOTTOM - 32 - step * (i + 1)
        yield _box(6, y, width, step - 6, style(f"layer_{i}/"), f"layer {i}")
        if f".layers/{i}" in delta:
            yield _box(width + 14, y, 22, step - 6, "added", "+")
    yield _box(6, _BLOCK_BOTTOM - 26, width, 22, style("embeddings/"), "tokens" if beside else "embeddings")


def _block(marks: Mapping[str, str]) -> Iterator[str]:
    """Yields one block with its two sublayers, the feed-forward network above."""
    for sublayer, x, y, width, height in _SUBLAYERS:
        yield _box(x, y, width, height, f"sublayer {marks.get(sublayer, '')}".strip())
    for site, x, y, width in _BLOCK:
        yield _box(x, y, width, 24, marks.get(site, "frozen"), site.rpartition("/")[2].replace("_", " "))
    for sublayer, x, y, width, _ in _SUBLAYERS:
        if sublayer in marks:
            yield f'<circle class="plus" cx="{x + width}" cy="{y}" r="8"/>' + _text(
                x + width, y + 4, "+", "middle sign"
            )


def _side(size: int) -> float:
    return 6 + 4.5 * math.log2(size)


def _arrays(kinds: list[Site], top: float) -> tuple[list[str], float]:
    """Returns the arrays of some kinds of sites, drawn from `top` down, and the height of the whole drawing."""
    parts, y = [], top
    if not kinds:
        return [_text(6, y, "no trained arrays", "note")], y + 10
    for kind in kinds[:_SHOWN_SITES]:
        times = f" × {kind.count}" if kind.count > 1 else ""
        parts.append(_text(6, y, f"{kind.name}{times}", "heading"))
        y += 8
        x, tallest = 6.0, 0.0
        for name, shape in kind.arrays:
            # A vector lies: it is drawn as a matrix of one row.
            *rows, columns = shape or (1,)
            height, width = _side(math.prod(rows)), _side(columns)
            label = f"{name} {'×'.join(map(str, shape)) or '1'}"
            taken = max(width, 6.2 * len(label)) + 10
            if x > 6 and x + taken > _WIDTH:
                x, y, tallest = 6.0, y + tallest + 24, 0.0
            parts.append(_box(x, y, width, height, _mark(kind)))
            parts.append(_text(x, y + height + 13, label, "note"))
            x, tallest = x + taken, max(tallest, height)
        y += tallest + 36
    if rest := kinds[_SHOWN_SITES:]:
        parts.append(_text(6, y, f"and {sum(kind.count for kind in rest)} more sites", "note"))
        y += 16
    return parts, math.ceil(y - 10)


def legend() -> str:
    """Returns the meaning of the colours as an SVG element."""
    items = (("frozen", "frozen", 2), ("trained", "trained in place", 86), ("added", "arrays are added", 214))
    boxes = "".join(_box(x, 2, 14, 14, style) + _text(x + 20, 14, text, "note") for style, text, x in items)
    return _svg(18, "legend", boxes)

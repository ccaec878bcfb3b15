"""An attribution graph as a PNG for a paper or a slide, drawn by matplotlib: no browser, no window, no network."""

from __future__ import annotations

import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, RULE, TRAY = "#1c222d", "#5d6573", "#e3dfd5", "#f3f1eb"
RAISES, LOWERS = "#4a5b75", "#b5283c"
CLASSES = {
    "sum": "#0072b2",
    "ones-digit lookup": "#d55e00",
    "magnitude": "#009e73",
    "operand": "#cc79a7",
    "modular": "#e69f00",
    "other": "#878e99",
}
KINDS = {"feature": "#7b9cc0", "error": "#9aa1ab", "token": "#2f3846", "position": "#6c7685", "bos": "#6c7685"}
MARKS = {"feature": "o", "error": "D", "token": "s", "position": "^", "bos": "h", "bias": "s"}
SPARE = ("#56b4e9", "#6f4a8e", "#8c6d31")
DPI = 200
MOST_NODES, MOST_EDGES, MOST_LABELS = 160, 90, 12
STEP = 0.19
"""Width that a node takes, in inches."""


@dataclass
class Spot:
    """Where a node is drawn."""

    node: Mapping
    """The document's node."""
    about: Mapping
    """What the document knows of it beyond the schema."""
    x: float = 0.0
    """Across, in inches."""
    y: float = 0.0
    """Up, in inches."""

    @property
    def share(self) -> float:
        """Share of the answer; 1 for what the graph explains."""
        return float(self.about.get("influence") or 0.0) if not self.is_top else 1.0

    @property
    def is_top(self) -> bool:
        """Whether the graph explains it."""
        return self.about["kind"] in ("logit", "target")


def graph_png(document: Mapping) -> bytes:
    """PNG of the strongest nodes by position and layer with the strongest edges between them.

    At most 160 nodes, 90 edges and 12 names are drawn, largest share of the answer first. Text is plain: nothing in
    it is read as mathematics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    spots = _strongest(document)
    width, height, columns, rows = _place(document, spots)
    figure = Figure(figsize=(width + 1.0, height + 1.5), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-1.0, width)
    axes.set_ylim(-0.75, height + 0.75)
    axes.set_axis_off()
    _draw_grid(axes, document, width, columns, rows)
    _draw_edges(axes, document, spots)
    colours = _draw_nodes(axes, spots)
    _draw_labels(axes, document, spots, width)
    _draw_heading(axes, document, colours, width, height)
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # shown as boxes
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _strongest(document: Mapping) -> dict[str, Spot]:
    about = document["mechkit"]["nodes"]
    spots = [Spot(node, about[node["node_id"]]) for node in document["nodes"]]
    spots.sort(key=lambda spot: -spot.share)
    return {spot.node["node_id"]: spot for spot in spots[:MOST_NODES]}


def _place(document: Mapping, spots: dict[str, Spot]) -> tuple[float, float, list[float], dict[int, float]]:
    """Give every node its place; returns the size, the middle of each column and the height of each row."""
    n_layers, n_tokens = document["mechkit"]["n_layers"], len(document["metadata"]["prompt_tokens"])
    cells: dict[tuple[int, int], list[Spot]] = defaultdict(list)
    for spot in spots.values():
        layer = n_layers if spot.is_top else spot.about["layer"]
        cells[layer, spot.node["ctx_idx"]].append(spot)
    for cell in cells.values():
        cell.sort(key=lambda spot: (str(spot.about.get("class")), -spot.share))
    per_line = 14 if n_tokens <= 12 else 6
    widths = [0.42] * n_tokens
    for (_, pos), cell in cells.items():
        needed = 0.85 * len(cell) if cell[0].is_top else STEP * min(len(cell), per_line)
        widths[pos] = max(widths[pos], needed + 0.24)
    spare = max(0.0, 7.5 - sum(widths)) / max(1, n_tokens)
    columns, x = [], 0.0
    for w in widths:
        columns.append(x + (w + spare) / 2)
        x += w + spare
    rows, y = {}, 0.0
    for layer in range(-1, n_layers + 1):
        lines = max([-(-len(cell) // per_line) for (at, _), cell in cells.items() if at == layer], default=1)
        rows[layer] = y + (lines - 1) * STEP / 2
        y += (lines - 1) * STEP + (0.95 if n_layers <= 8 else 0.5)
    for (layer, pos), cell in cells.items():
        _place_cell(cell, columns[pos], rows[layer], per_line)
    return x, max(rows.values()), columns, rows


def _place_cell(cell: Sequence[Spot], x: float, y: float, per_line: int) -> None:
    step = 0.85 if cell[0].is_top else STEP
    lines = [cell[i : i + per_line] for i in range(0, len(cell), per_line)]
    for i, line in enumerate(lines):
        for j, spot in enumerate(line):
            spot.x, spot.y = x + (j - (len(line) - 1) / 2) * step, y + ((len(lines) - 1) / 2 - i) * STEP


def _draw_grid(axes: Axes, document: Mapping, width: float, columns: list[float], rows: dict[int, float]) -> None:
    top = max(rows)
    for layer, y in rows.items():
        name = "embeddings" if layer < 0 else "answer" if layer == top else f"layer {layer}"
        axes.plot([-0.15, width], [y, y], color=RULE, linewidth=0.7, linestyle=(0, (1, 4)), zorder=0)
        axes.text(-0.25, y, name, ha="right", va="center", fontsize=7.5, color=MUTED)
    step = max(1, round(0.3 * len(columns) / max(width, 0.1)))
    for pos in range(0, len(columns), step):
        token = _visible(document["metadata"]["prompt_tokens"][pos])
        token = token if len(token) <= 10 else token[:9] + "…"
        axes.text(columns[pos], -0.42, token, ha="center", va="center", fontsize=9, color=INK, parse_math=False)


def _draw_edges(axes: Axes, document: Mapping, spots: dict[str, Spot]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    shares = document["mechkit"]["edges"]["influence"]
    drawn = [
        (share, link)
        for share, link in zip(shares, document["links"], strict=True)
        if link["source"] in spots and link["target"] in spots
    ]
    drawn = sorted(drawn, key=lambda item: -item[0])[:MOST_EDGES]
    largest = max([share for share, _ in drawn], default=1.0) or 1.0
    for share, link in reversed(drawn):
        a, b = spots[link["source"]], spots[link["target"]]
        pull = max(0.3, 0.45 * (b.y - a.y))
        path = Path([(a.x, a.y), (a.x, a.y + pull), (b.x, b.y - pull), (b.x, b.y)], [1, 4, 4, 4])
        lowers = link["weight"] < 0
        colour, style = (LOWERS, (0, (3, 1.5))) if lowers else (RAISES, "solid")
        size = 0.35 + 2.6 * share / largest
        axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=size, linestyle=style, alpha=0.45))


def _draw_nodes(axes: Axes, spots: dict[str, Spot]) -> dict[str, str]:
    largest = max([spot.share for spot in spots.values() if not spot.is_top], default=1.0) or 1.0
    spare, colours = list(SPARE), {}
    for spot in spots.values():
        kind, group = spot.about["kind"], spot.about.get("class")
        if spot.is_top:
            text = _clipped(spot.about.get("name") or spot.node["clerp"], 12)
            box = {"boxstyle": "round,pad=0.35", "facecolor": KINDS["token"], "edgecolor": "none"}
            axes.text(spot.x, spot.y, text, ha="center", va="center", color="white", fontsize=8.5, bbox=box,
                      parse_math=False, zorder=4)  # fmt: skip
            continue
        name = group if kind == "feature" and group else kind
        if name not in colours:
            known = CLASSES.get(name) or KINDS.get(name)
            colours[name] = known or (spare.pop(0) if spare else CLASSES["other"])
        size = 16 + 60 * spot.share / largest
        axes.scatter([spot.x], [spot.y], s=size, marker=MARKS.get(kind, "o"), color=colours[name], edgecolors="white",
                     linewidths=0.6, zorder=3)  # fmt: skip
    return colours


def _draw_labels(axes: Axes, document: Mapping, spots: dict[str, Spot], width: float) -> None:
    """Names beside the features they are of: of supernodes with more than one, of the strongest features else."""
    taken = [(spot.x - 0.08, spot.y - 0.08, spot.x + 0.08, spot.y + 0.08) for spot in spots.values()]
    for text, x, y, reach in _names(document, spots)[:MOST_LABELS]:
        wide = 0.062 * len(text) + 0.1
        places = [(x + reach + wide / 2, y), (x - reach - wide / 2, y), *((x, y + dy) for dy in (0.2, -0.2, 0.36))]
        for middle, at in places:
            box = (middle - wide / 2, at - 0.07, middle + wide / 2, at + 0.07)
            inside = box[0] > -0.1 and box[2] < width + 0.1
            if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                back = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
                axes.text(middle, at, text, ha="center", va="center", fontsize=6.6, color=INK, bbox=back,
                          parse_math=False, zorder=5)  # fmt: skip
                break


def _names(document: Mapping, spots: dict[str, Spot]) -> list[tuple[str, float, float, float]]:
    """Text, middle, and half the width of what it names: supernodes by share, then features of none."""
    found, inside = [], set()
    for name, *members in (document.get("qParams") or {}).get("supernodes") or []:
        drawn = [spots[member] for member in members if member in spots]
        if len(drawn) > 1 and len({(spot.y, spot.node["ctx_idx"]) for spot in drawn}) == 1:
            inside |= set(members)
            xs, share = [spot.x for spot in drawn], sum(spot.share for spot in drawn)
            text = f"{_clipped(name, 30)}: {len(drawn)} features, {share:.0%}"
            found.append((share, text, (min(xs) + max(xs)) / 2, drawn[0].y, (max(xs) - min(xs)) / 2 + 0.14))
    for name, spot in spots.items():
        if spot.about["kind"] == "feature" and name not in inside:
            found.append((spot.share, _clipped(spot.node["clerp"], 34), spot.x, spot.y, 0.14))
    return [item[1:] for item in sorted(found, key=lambda item: -item[0])]


def _draw_heading(axes: Axes, document: Mapping, colours: Mapping[str, str], width: float, height: float) -> None:
    title = _clipped(_visible(document["metadata"]["prompt"]), int(11 * (width + 1)))
    axes.text(-0.85, height + 0.5, title, fontsize=11, fontweight="bold", color=INK, va="center", parse_math=False)
    kinds = {name: MARKS.get(name, "o") for name in colours}
    x = width
    for name, colour in reversed(list(colours.items())):
        x -= 0.075 * len(name) + 0.06
        axes.text(x, height + 0.5, name, fontsize=7.5, color=MUTED, va="center", parse_math=False)
        x -= 0.11
        axes.scatter([x], [height + 0.5], s=26, marker=kinds[name], color=colour)
        x -= 0.16


def _visible(token: str) -> str:
    return token.replace("\n", "↵").replace("\t", "⇥").strip() or "␣"


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"

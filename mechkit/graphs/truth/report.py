"""A graph in words: what was found, and how far to trust it.

Every judgement is a comparison of a measured number with a threshold that stands here and is said beside it.

    print(graph.report())
    graph.report().markdown
"""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mechkit.graphs.files.export import node_label
from mechkit.graphs.nodes import Node
from mechkit.graphs.truth.check import LEVELS, Check, same_sign, spearman
from mechkit.graphs.truth.faithfulness import Faithfulness

WELL, ROUGHLY = 0.8, 0.5
"""Rank correlations from which predictions are said to be good, or rough; below the second they are said to fail."""

CLEAR = 0.2
"""By how much a prediction must be above its control, or another predictor above it, to be said to be better."""

CARRIES, PART = 0.8, 0.5
"""Shares of the answer from which kept features are said to carry it, or part of it."""

EXACT = 1e-4
"""Largest error at the exact level that is taken for rounding."""

MISSED = 0.1
"""Share of the influence on the answer from which what dictionaries miss is said to matter."""

FEW = 26
"""Features below which the uncertainty of a rank correlation, about 1 over the root of one less, is said (0.2)."""

FOLLOWED = 0.99
"""Coverage below which what was not followed is said to matter."""

_WIDTH = 110
_SHOWN = 8


class Report(str):
    """Text with line ends; `markdown` is the same for notebooks and files."""

    markdown: str

    def __new__(cls, sections: "Sequence[Section]") -> "Report":
        made = super().__new__(cls, "\n\n".join(section.text for section in sections))
        made.markdown = "\n\n".join(section.markdown for section in sections)
        return made

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return self.markdown


@dataclass
class Section:
    """A heading with sentences and tables under it."""

    title: str
    """The heading."""
    parts: list[Any] = field(default_factory=list)
    """Sentences, and tables with headings, in order."""

    def say(self, *sentences: str) -> None:
        """Add sentences, one line each."""
        self.parts += sentences

    @property
    def text(self) -> str:
        """As plain text."""
        return "\n".join([self.title, "-" * len(self.title), *(_plain(part) for part in self.parts)])

    @property
    def markdown(self) -> str:
        """As Markdown."""
        return "\n\n".join([f"## {_escaped(self.title)}", *_joined(self.parts)])


def _plain(part: Any) -> str:
    if isinstance(part, str):
        return textwrap.fill(part, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    rows = [list(part.columns), *([_number(value) for value in row] for row in part.itertuples(index=False))]
    left = [not any(isinstance(value, float | int) for value in part.iloc[:, i]) for i in range(len(part.columns))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(left))]
    lines = (
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        )
        for row in rows
    )
    return "\n".join("    " + line.rstrip() for line in lines)


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("\n", "\\n")


def _joined(parts: Sequence[Any]) -> Iterator[str]:
    """Sentences as list items, tables with pipes."""
    items: list[str] = []
    for part in parts:
        if isinstance(part, str):
            items.append("- " + _escaped(part))
            continue
        yield from ["\n".join(items)] if items else []
        items = []
        cells = [[_cell(value) for value in row] for row in part.itertuples(index=False)]
        rows = [list(part.columns), ["---"] * len(part.columns), *cells]
        yield "\n".join("| " + " | ".join(row) + " |" for row in rows)
    yield from ["\n".join(items)] if items else []


def _cell(value: Any) -> str:
    return _escaped(_number(value))


def _escaped(text: str) -> str:
    """Text of prompts and labels, so that it makes no markup."""
    for mark in "\\`*_<>|[]#":
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", "\\n")


def report(graph) -> Report:
    """What the graph found, and how far to trust it, in words; every judgement says its number and its threshold.

    Cost: that of `verify` if the graph is not checked yet, of `levels`, of `faithfulness` and of two checks of the
    supernodes: about fifteen rows of a forward pass for each kept feature.
    """
    made = [_answer(graph), _found(graph)]
    if any(graph.sources[i].kind == "feature" for i in graph.kept_sources):
        check, faithful = graph.check or graph.verify(), graph.faithfulness()
        found = graph.levels()
        made += [_strongest(graph, check), *_together(graph), _trust(graph, check, found, faithful)]
    return Report(made)


def _answer(graph) -> Section:
    first, *others = graph.logits
    section = Section(f"{graph.meta['prompt']!r}")
    if first.kind != "logit":
        section.say(f"The graph explains {', '.join(str(root) for root in graph.roots)}.")
        return section
    sure = lambda node: f"{node.name!r} ({graph.probabilities[node.id]:.1%})"  # noqa: E731
    then = f"; then {', '.join(map(sure, others[:3]))}" if others else ""
    section.say(f"The model goes on with {sure(first)}{then}.")
    return section


def _found(graph) -> Section:
    section, sources = Section("What was found"), graph.weighted.sources
    kept = [sources[i] for i in graph.kept_sources if sources[i].kind == "feature"]
    n = len(graph.attribution.features)
    what = "neurons" if _on_neurons(graph) else "features"
    by_layer = Counter(node.layer for node in kept)
    layers = ", ".join(f"L{layer} {count}" for layer, count in sorted(by_layer.items()))
    if not graph.attribution.bases:
        section.say("The model has no MLPs: tokens and positions act on the answer through heads and directly alone.")
    else:
        section.say(
            f"{n} {what} are active on the prompt; {len(kept)} carry enough of the answer to be kept ({layers})."
        )
    if classes := Counter(graph.meanings[node.id].group for node in kept if node.id in graph.meanings):
        section.say(f"Their classes: {', '.join(f'{count} {name}' for name, count in classes.most_common())}.")
    heads = [(name.removesuffix(".z"), share) for name, share in _heads(graph) if share >= 0.05]
    if heads:
        section.say(
            f"Heads, by the share each is the last to carry: {', '.join(f'{h} {s:.0%}' for h, s in heads[:6])}."
        )
    paths = graph.pathways(6)
    section.say("Pathways, by the share of the influence on the answer (sizes: some argue against it):")
    section.parts.append(pd.DataFrame([(f"{path.share:.0%}", path.text) for path in paths], columns=["share", "path"]))
    return section


def _heads(graph) -> list[tuple[str, float]]:
    result = graph.heads()
    return list(zip(result.labels, result.scores[:, 0].tolist(), strict=True))


def _on_neurons(graph) -> bool:
    return all(basis.name == "neurons" for basis in graph.attribution.bases)


def _strongest(graph, check: Check) -> Section:
    """The features whose suppression moves the answer most."""
    order = check.measured.abs().argsort(descending=True)[:_SHOWN].tolist()
    section = Section(f"What {check.root} rests on")
    section.say("Taken out one at a time, these move it most in the model, nothing frozen (iii):")
    rows = [
        (node_label(graph, check.nodes[i]), str(check.nodes[i].site), *_three(check, i)) for i in order
    ]  # fmt: skip
    section.parts.append(pd.DataFrame(rows, columns=["feature", "site", "graph", "ii", "iii"]))
    return section


def _three(check: Check, i: int) -> tuple[float, float, float]:
    return float(check.predicted[i]), float(check.frozen[i]), float(check.measured[i])


def _together(graph) -> list[Section]:
    """Supernodes, suppressed and doubled."""
    names = {name: nodes for name, nodes in graph.supernodes.items() if any(node.kind == "feature" for node in nodes)}
    if not names:
        return []
    largest = sorted(names, key=lambda name: -_influence(graph, names[name]))[:_SHOWN]
    off, twice = graph.verify(largest), graph.verify(largest, multiple=2.0)
    section = Section("Supernodes")
    section.say(
        f"Changes of {off.root} when each is taken out, and when it is made twice as active: by the graph, with "
        "attention and norms frozen (ii), with nothing frozen (iii):"
    )
    rows = [
        (name, len(names[name]), f"{_influence(graph, names[name]):.0%}", *_three(off, i), *_three(twice, i))
        for i, name in enumerate(largest)
    ]
    columns = ["supernode", "nodes", "share", "off: graph", "ii", "iii", "twice: graph", "ii", "iii"]
    section.parts.append(pd.DataFrame(rows, columns=columns))
    signs = [f"{same_sign(one.predicted, one.measured):.0%}" for one in (off, twice)]
    section.say(
        f"With nothing frozen the sign is as predicted for {signs[0]} of them off, for {signs[1]} twice as active."
    )
    if same_sign(twice.predicted, twice.measured) < ROUGHLY <= same_sign(twice.predicted, twice.frozen):
        section.say("Twice as active they do not raise it once norms answer: do not read steering off this graph.")
    return [section]


def _influence(graph, nodes: Sequence[Node]) -> float:
    return float(graph.weighted.influence[[graph.column_of(node) for node in nodes]].sum())


def _trust(graph, check: Check, levels: pd.DataFrame, faithful: Faithfulness) -> Section:
    section = Section("How far to trust it")
    section.say(*_of_scores(graph), _of_exactness(check))
    for level, title in LEVELS.items():
        section.say(_of_level(check, level, title))
    section.say(*_of_layers(check), *_of_what_is_left_out(levels), *_of_faithfulness(faithful))
    return section


def _of_scores(graph) -> Iterator[str]:
    coverage, scores = graph.coverage, graph.weighted.scores()
    if coverage < FOLLOWED:
        yield f"Only {coverage:.1%} of the influence was followed to its end (below {FOLLOWED:.0%}): paths are missing."
    if _on_neurons(graph):
        yield "Nodes are the model's own neurons: nothing is missed, and nothing is said to be one concept per node."
        return
    missed = 1 - scores["replacement"]
    so = f"a gap to keep in mind ({MISSED:.0%} or more)" if missed >= MISSED else f"little (below {MISSED:.0%})"
    yield f"{missed:.0%} of the influence on the answer comes from what the dictionaries miss: {so}."


def _of_exactness(check: Check) -> str:
    same = check.exact_error < EXACT
    verdict = "the matrix is the frozen model's own derivative" if same else f"above {EXACT:.0e}: do not trust edges"
    return f"(i) With all frozen, every target moves as its column says, within {check.exact_error:.0e}: {verdict}."


def _of_level(check: Check, level: str, title: str) -> str:
    truth, number = getattr(check, level), title.partition(":")[0]
    graph, gradient, direct, control = (
        spearman(getattr(check, name), truth) for name in ("predicted", "gradient", "direct", "control")
    )
    if graph != graph:
        return f"({number}) Fewer than three features are kept: no rank correlation can be told."
    words = "predicts well" if graph >= WELL else "predicts roughly" if graph >= ROUGHLY else "does not predict"
    text = (
        f"({number}) With {title.partition(': ')[2]}, the graph {words} what suppressing a feature does: Spearman "
        f"{graph:.2f} over {len(check.groups)} (well from {WELL}, roughly from {ROUGHLY}); gradient {gradient:.2f}, "
        f"direct effect {direct:.2f}, permuted control {control:.2f}. The sign is right for "
        f"{same_sign(check.predicted, truth):.0%} (control {same_sign(check.control, truth):.0%})."
    )
    if len(check.groups) < FEW:
        text += f" So few features leave a correlation uncertain by about {(len(check.groups) - 1) ** -0.5:.1f}."
    if graph < control + CLEAR:
        text += f" That is not {CLEAR} above the control: over all layers it is no evidence for the edges."
    if direct >= graph:
        text += " Direct effects do no worse here: indirect paths are not shown to add anything."
    if level == "measured" and gradient >= graph + CLEAR:
        text += " The model's gradient does better: ask it for what a small edit does, the graph for the route."
    return text


def _of_layers(check: Check) -> Iterator[str]:
    """Layers in which the graph is no better than its control, nothing frozen."""
    summary = check.summary().set_index(["level", "by"])
    rows = {by: summary.loc[(LEVELS["measured"], by)] for by in ("graph", "control")}
    layers = [name for name in summary.columns if name.startswith("spearman L")]
    known = [name for name in layers if rows["graph"][name] == rows["graph"][name]]
    said = ", ".join(
        f"{name.removeprefix('spearman ')} {rows['graph'][name]:.2f} ({rows['control'][name]:.2f})" for name in known
    )
    if known:
        yield f"By layer, nothing frozen, with the control in brackets: {said}."
    poor = [name.removeprefix("spearman ") for name in known if rows["graph"][name] < rows["control"][name] + CLEAR]
    if poor:
        yield f"In {', '.join(poor)} that is not {CLEAR} above the control: the order of features there is not shown."


def _of_what_is_left_out(levels: pd.DataFrame) -> Iterator[str]:
    by_held = dict(zip(levels["held"].tolist(), levels["spearman"].tolist(), strict=True))
    if any(value != value for value in by_held.values()):
        return
    free, both = by_held["nothing"], by_held["attention and norms"]
    parts = ", ".join(f"{name} {value:.2f}" for name, value in by_held.items())
    yield f"Agreement by what is held: {parts}."
    gains = {name: by_held[name] - free for name in ("attention", "norms")}
    first = max(gains, key=lambda name: gains[name])
    if both >= free + CLEAR:
        what = {"attention": "where attention goes then", "norms": "how the norms' scales respond"}[first]
        yield f"Most of what the graph leaves out is {what}: holding that alone adds {gains[first]:.2f}."
    if "attention, norms and errors" in by_held and by_held["attention, norms and errors"] < WELL:
        yield "Even with dictionaries in the MLPs' place it is off: what whole features do is far from linear."


def _of_faithfulness(found: Faithfulness) -> Iterator[str]:
    if found.score != found.score:
        yield f"Without any feature {found.root} is the same: faithfulness cannot be told."
        return
    words = "carry" if found.score >= CARRIES else "carry part of" if found.score >= PART else "do not carry"
    yield (
        f"The {found.n_kept} kept features, all other features taken out of the model, {words} {found.root}: "
        f"{found.score:.0%} of it is left (carries from {CARRIES:.0%}, part from {PART:.0%}; "
        f"as many at random: {found.control:.0%})."
    )
    if found.score < found.control + CLEAR:
        yield f"That is not {CLEAR:.0%} above random features: pruning did not find what matters."
    if found.score_without_errors is not None and found.ceiling_without_errors is not None:
        yield (
            f"With what dictionaries miss taken out as well: {found.score_without_errors:.0%}; all features alone "
            f"reach {found.ceiling_without_errors:.0%}."
        )
    without = found.share(found.others)
    needed = f"at most {1 - CARRIES:.0%}: they are needed" if without <= 1 - CARRIES else "other features can stand in"
    yield f"With the kept features taken out and all others left, {without:.0%} is left ({needed})."

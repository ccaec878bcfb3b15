"""A patched pair as a page of terminal output, as plain data, and as pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from mechkit.core.metrics import Metric
from mechkit.core.prompts import NO_TOKEN, Pair, Prompts
from mechkit.core.result import Result
from mechkit.core.sweep import sweep
from mechkit.report.console import plain, print_written, table, terminal
from mechkit.viz.figure_page import figure_page
from mechkit.viz.picture import with_tokens
from mechkit.viz.result_figure import result_figure
from mechkit.viz.result_png import result_png

WORDS = {
    "denoise": "each site of the corrupt prompt takes its clean value",
    "noise": "each site of the clean prompt takes its corrupt value",
    "zero": "each site of the clean prompt is set to zero",
    "mean": "each site of the clean prompt takes its mean over the corrupt prompts",
    "resample": "each site of the clean prompt takes its value on another prompt",
}
"""What was done, by `patch`'s kind."""


@dataclass(frozen=True)
class Patched:
    """A result of `patch` on one pair, with the words for its prompts."""

    result: Result
    """Change of the metric, a row per site."""
    metric: str
    """Name of the metric."""
    asked: str
    """The sites, as they were asked for."""
    sides: dict[str, tuple[str, str, float]]
    """By `clean` and `corrupt`: the prompt, its answer, the metric on it before any patch."""
    tokens: list[str]
    """Tokens of the clean prompt."""

    @classmethod
    def of(cls, model, prompts: Pair | Prompts, metric: Metric, result: Result, asked: Sequence[str]) -> "Patched":
        """What there is to say of `result`. Cost: one forward pass per side."""
        pair = {"clean": prompts.clean, "corrupt": prompts.corrupt} if isinstance(prompts, Pair) else {"clean": prompts}
        sides = {}
        for name, side in pair.items():
            ids = side.answers if name == "clean" else side.wrong
            value = float(sweep(model, side, [[]], metric).scores[0, 0])
            sides[name] = ((side.text or ("",))[0], _words(model, ids), value)
        tokens = [str(model.tokenizer.decode([token])) for token in pair["clean"].tokens[0].tolist()]
        return cls(result, metric.name, ", ".join(asked), sides, tokens)

    @property
    def kind(self) -> str:
        """Which way values were moved, in words."""
        return WORDS[self.result.meta["kind"]]

    @property
    def title(self) -> str:
        """What a picture of it is called."""
        return f"{self.asked}: change of {self.metric} when {self.kind}"

    @property
    def gap(self) -> float | None:
        """Full recovery, where that makes sense."""
        return None if self.result.gap is None else float(self.result.gap[0])

    def rows(self) -> pd.DataFrame:
        """The rows with the token at each position."""
        return with_tokens(self.result.rows, self.tokens).assign(name=self.result.labels)

    def top(self, n: int) -> list[tuple[str, float, float | None]]:
        """The strongest sites: text, change, share of the gap."""
        best = self.result.top(n)
        scores = best.scores[:, 0].tolist()
        shares = [score / self.gap if self.gap else None for score in scores]
        return list(zip(best.labels, scores, shares, strict=True))


def patch_summary(patched: Patched, top: int) -> dict:
    """What `print_patch` prints, as JSON-able data."""
    return {
        **{
            name: {"prompt": prompt, "answer": answer, "metric": value}
            for name, (prompt, answer, value) in patched.sides.items()
        },
        "metric": patched.metric,
        "unit": patched.result.unit,
        "kind": patched.result.meta["kind"],
        "gap": patched.gap,
        "n_sites": len(patched.result),
        "top": [{"site": site, "score": score, "share_of_gap": share} for site, score, share in patched.top(top)],
    }


def print_patch(patched: Patched, top: int, written: Sequence[Path], console: Console | None = None) -> None:
    """Print the pair, its metric, the strongest sites, and what was written."""
    console = console or terminal()
    console.print()
    for name, words in _facts(patched):
        console.print(f"  [dim]{name:<9}[/dim]{plain(words)}")
    n = len(patched.result)
    console.print(f"\n[bold]{n} site{'s' * (n > 1)}[/bold], change of {patched.metric} when {patched.kind}")
    head, *lines = _table(patched, top)
    shown = table(*head)
    for line in lines:
        shown.add_row(*map(plain, line))
    console.print(shown)
    if n > top:
        console.print(f"  [dim]the {top} largest in size; all of them are in the files below[/dim]")
    print_written(written, console)


def patch_page(patched: Patched, top: int) -> str:
    """HTML of one self-contained page: the pair, the picture, the strongest sites."""
    head, *lines = _table(patched, top)
    figure = result_figure(patched.rows(), patched.result.scores[:, 0].numpy(), patched.result.unit, "")
    return figure_page(figure, patched.title, _facts(patched), head, lines)


def patch_png(patched: Patched) -> bytes:
    """The picture alone, as a PNG."""
    title = f"{patched.asked}: change of {patched.metric}"
    return result_png(patched.rows(), patched.result.scores[:, 0].numpy(), patched.result.unit, title)


def _facts(patched: Patched) -> list[tuple[str, str]]:
    """The prompts with their answers and metric, and what full recovery would be."""
    unit = patched.result.unit
    width = max(len(prompt) + len(answer) for prompt, answer, _ in patched.sides.values())
    facts = [
        (name, f"{f'{prompt} {answer}':<{width + 1}}   {patched.metric} {value:+.4g} {unit}")
        for name, (prompt, answer, value) in patched.sides.items()
    ]
    if patched.gap is not None:
        facts.append(("gap", f"{patched.gap:+.4g} {unit}, full recovery"))
    return facts


def _table(patched: Patched, top: int) -> list[list[str]]:
    """The strongest sites, under their head."""
    token = dict(zip(patched.result.labels, patched.rows()["token"], strict=True))
    columns = {
        "site": [site for site, _, _ in patched.top(top)],
        "token": [token.get(site) or "" for site, _, _ in patched.top(top)],
        patched.result.unit: [f"{score:+.3f}" for _, score, _ in patched.top(top)],
        "of the gap": ["" if share is None else f"{share:.0%}" for _, _, share in patched.top(top)],
    }
    used = {name: cells for name, cells in columns.items() if any(cells)}
    return [list(used), *map(list, zip(*used.values(), strict=True))]


def _words(model, ids) -> str:
    """An answer's tokens as text; nothing where there is none."""
    return "" if ids is None else str(model.tokenizer.decode([i for i in ids[0].tolist() if i != NO_TOKEN])).strip()

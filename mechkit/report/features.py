"""Answers of a feature index as a page of terminal output and as plain data."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mechkit.core.result import Result
from mechkit.features.detection import Detection
from mechkit.features.feature import Feature
from mechkit.features.index import FeatureIndex
from mechkit.features.quality import Quality
from mechkit.features.questions import Lookup
from mechkit.features.ranked import Ranked
from mechkit.report.console import plain, print_written, table, terminal

WIDEST = 60
"""Signs of text shown in a cell."""
WRONG = 6
"""Texts shown on which a description was wrong."""


def scan_summary(index: FeatureIndex) -> dict[str, Any]:
    """What `print_scan` prints, as JSON-able data."""
    density, corpus = index.density, index.manifest["corpus"]
    return {
        "wrote": str(index.folder), "saes": index.saes, "n_features": index.n_features, "n_tokens": index.n_tokens,
        "l0": float(density.sum()), "dead": int((density == 0).sum()), "dense": int((density > 0.1).sum()),
        "rows": corpus["n_rows"], "split": corpus["split"], "skipped": corpus["skipped"],
    }  # fmt: skip


def print_scan(index: FeatureIndex, console: Console | None = None) -> None:
    """Print what was scanned, of each SAE its sparsity, and what was passed over."""
    console = console or terminal()
    corpus = index.manifest["corpus"]
    console.print(f"\n[bold]{plain(index.manifest['model']['name'])}[/bold] on {index.n_tokens:,} tokens\n")
    shown = table("SAE", "features", "L0", "never fire", "on over 10 %")
    for name in index.saes:
        one = scan_summary(FeatureIndex.open(index.folder, name))
        shown.add_row(plain(name), f"{one['n_features']:,}", f"{one['l0']:.1f}", str(one["dead"]), str(one["dense"]))
    console.print(shown)
    for reason, n in corpus["skipped"].items():
        console.print(f"  passed over: {n} {reason}, such as {plain(', '.join(corpus['first_skipped'][reason][:2]))}")
    if corpus["split"]:
        console.print(f"  {corpus['split']} documents longer than {corpus['context']} tokens go on in further rows")
    console.print(f"\nwrote {plain(str(index.folder))}", soft_wrap=True)


def feature_summary(feature: Feature) -> dict[str, Any]:
    """A feature as JSON-able data."""
    return {key: _data(value) for key, value in vars(feature).items()}


def print_feature(feature: Feature, console: Console | None = None) -> None:
    """Print one feature: counts, labels, what it promotes, its histogram."""
    console = console or terminal()
    console.print(f"\n[bold]feature {feature.id}[/bold]", ", ".join(plain(one) for one in feature.labels["text"]))
    console.print(
        f"  fires on {feature.n_firings:,} tokens ({100 * feature.density:.3g} %), "
        f"mean {feature.mean:.3g} where it fires, greatest {feature.max:.3g}"
    )
    for words, tokens in (("promotes", feature.promoted), ("suppresses", feature.suppressed)):
        shown = (
            f"{plain(_seen(text))} {logit:+.2f}" for text, logit in zip(tokens["text"], tokens["logit"], strict=True)
        )
        console.print(f"  {words}: {', '.join(shown) or 'not known for this hook'}")
    if len(feature.histogram):
        console.print()
        most = feature.histogram["n"].max()
        for start, n in zip(feature.histogram["from"], feature.histogram["n"], strict=True):
            console.print(f"  from {start:<9.3g}{n:>9,} {'█' * math.ceil(40 * n / most)}")


def lookup_summary(found: Lookup) -> dict[str, Any]:
    """A prompt's features as JSON-able data."""
    return {**ranked_summary(found), "tokens": _data(found.tokens)}


def print_lookup(found: Lookup, written: Sequence[Path] = (), console: Console | None = None) -> None:
    """Print, token by token, the features that fire or do most and what the SAE misses; then what was written."""
    console = console or terminal()
    by_effect = "effect" in found.rows
    what = f"effect, {found.unit}" if by_effect else "activation, share of what is rebuilt"
    shown = table("token", "missed", "firing", f"features: {what}")
    shown.columns[-1].justify = "left"
    for token in found.tokens.to_dict("records"):
        own = found.at(token["pos"]).rows.to_dict("records")
        words = "   ".join(f"{row['feature']}: {_weight(row, by_effect)}" for row in own)
        missed = f"{100 * token['error']:.0f} %"
        shown.add_row(plain(_seen(token["token"])), missed, str(token["n_features"]), words)
    console.print(shown)
    console.print("  [dim]missed: length of what the SAE leaves out, over that of what it reads[/dim]")
    if by_effect:
        console.print("  [dim]effect: change of the metric without that firing; below 0, it raises the metric[/dim]")
    if written:
        print_written(written, console)


def _weight(row: dict[str, Any], by_effect: bool) -> str:
    return f"{row['effect']:+.3f}" if by_effect else f"{row['activation']:.2f}, {100 * row['share']:.0f} %"


def effect_summary(found: Result, prompts: Sequence[str]) -> dict[str, Any]:
    """What features do, as JSON-able data."""
    features = [
        {"feature": site.index, "changes": changes}
        for site, changes in zip(found.sites, found.scores.tolist(), strict=True)
    ]
    return {**found.meta, "unit": found.unit, "prompts": list(prompts), "features": features}


def print_effect(found: Result, prompts: Sequence[str], console: Console | None = None) -> None:
    """Print the metric of each prompt, and what it changes by for each feature."""
    console = console or terminal()
    meta, scores = found.meta, found.scores.tolist()
    done = f"held at {meta['steer']:g}" if "steer" in meta else f"times {meta['scale']:g}"
    done = "taken out" if meta.get("scale") == 0 else done
    console.print(f"\nchange of [bold]{meta['metric']}[/bold] ({found.unit}) with a feature {done}, one at a time\n")
    shown = table("prompt", "before", *(f"feature {site.index}" for site in found.sites))
    for i, prompt in enumerate(prompts):
        shown.add_row(plain(_seen(prompt)), f"{meta['before'][i]:.3f}", *(f"{row[i]:+.3f}" for row in scores))
    console.print(shown)
    if meta.get("scale") == 0:
        console.print("  [dim]below 0: the feature raises the metric[/dim]")


def quality_summary(found: Quality) -> dict[str, Any]:
    """An SAE's quality as JSON-able data."""
    shares = {"recovered": found.recovered, "recovered_mean": found.recovered_mean}
    return {key: _data(value) for key, value in {**vars(found), **shares}.items()}


def print_quality(found: Quality, console: Console | None = None) -> None:
    """Print an SAE's quality, a line for each number."""
    console = console or terminal()
    console.print(f"\nthe SAE at [bold]{plain(found.hook)}[/bold]\n")
    for name, value in found.facts():
        console.print(f"  [dim]{plain(name):<34}[/dim]{plain(value)}")


def detection_summary(found: Detection) -> dict[str, Any]:
    """The test of a description as JSON-able data."""
    return {key: _data(value) for key, value in vars(found).items()}


def print_detection(found: Detection, console: Console | None = None) -> None:
    """Print how well a description did, and texts on which it was wrong."""
    console = console or terminal()
    console.print(f"\n[bold]feature {found.id}[/bold] {plain(found.description)}\n")
    console.print(f"  balanced accuracy {found.balanced_accuracy:.2f} (0.5 is chance)")
    console.print(f"  says yes in {found.hits:.0%} of {found.n_firing} texts in which the feature fires")
    console.print(f"  says no in {found.rejections:.0%} of {found.n_silent} texts in which it does not")
    wrong = [row for row in found.texts.to_dict("records") if row["fires"] != (float(row["judged"]) >= 0.5)]
    for row in wrong[:WRONG]:
        kind = "missed" if row["fires"] else "no firing"
        console.print(f"  [dim]{kind:<10}[/dim]{plain(_seen(row['text']))}", no_wrap=True, overflow="ellipsis")


def ranked_summary(found: Ranked) -> dict[str, Any]:
    """Rows as JSON-able data."""
    return {"unit": found.unit, **{key: _data(value) for key, value in found.meta.items()}, "rows": _data(found.rows)}


def print_ranked(found: Ranked, console: Console | None = None) -> None:
    """Print the rows of an answer as a table."""
    console = console or terminal()
    if not len(found):
        console.print("nothing found")
        return
    rows = found.rows.drop(columns=["tokens", "activations", "peak", "position"], errors="ignore")
    shown = table(*(str(name) for name in rows.columns))
    for name, column in zip(rows.columns, shown.columns, strict=True):
        column.justify = "left" if rows[name].dtype.kind not in "iuf" else "right"
    for number, row in enumerate(rows.to_dict("records")):
        cells = {str(name): _cell(value) for name, value in row.items()}
        if "peak" in found.rows:
            cells["text"] = _marked(found.rows["tokens"].iloc[number], int(found.rows["peak"].iloc[number]))
        shown.add_row(*cells.values())
    console.print(shown)
    console.print(f"  unit: {found.unit}")


def _marked(tokens: list[str], peak: int) -> str:
    before, after = "".join(tokens[:peak])[-WIDEST:], "".join(tokens[peak + 1 :])[: WIDEST // 2]
    return f"{plain(_seen(before))}[bold reverse]{plain(_seen(tokens[peak]))}[/]{plain(_seen(after))}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return plain(_seen(str(value))[:WIDEST])


def _seen(text: str) -> str:
    """Text of tokens with its line ends and tabs made visible."""
    return text.replace("\n", "↵").replace("\t", "→").replace("\r", "")


def _data(value: Any) -> Any:
    """Plain data that JSON can hold; NaN becomes None."""
    if hasattr(value, "to_dict"):
        return [{str(key): _data(one) for key, one in row.items()} for row in value.to_dict("records")]
    if isinstance(value, list):
        return [_data(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value

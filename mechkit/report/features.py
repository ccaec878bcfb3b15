"""Answers of a feature index as a page of terminal output and as plain data."""

import math
from typing import Any

from rich.console import Console

from mechkit.features.index import Feature, FeatureIndex
from mechkit.features.questions import Lookup
from mechkit.features.ranked import Ranked
from mechkit.report.console import plain, table, terminal

WIDEST = 60
"""Signs of text shown in a cell."""


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


def print_lookup(found: Lookup, console: Console | None = None) -> None:
    """Print, token by token, the features that fire most, with their share of what is rebuilt, and what is missed."""
    console = console or terminal()
    shown = table("token", "missed", "firing", "features: activation, share of what is rebuilt")
    shown.columns[-1].justify = "left"
    for token in found.tokens.to_dict("records"):
        own = found.at(token["pos"]).rows.to_dict("records")
        words = "   ".join(f"{row['feature']}: {row['activation']:.2f}, {100 * row['share']:.0f} %" for row in own)
        missed = f"{100 * token['error']:.0f} %"
        shown.add_row(plain(_seen(token["token"])), missed, str(token["n_features"]), words)
    console.print(shown)


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

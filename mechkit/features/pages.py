"""Answers of an index as pages: plain data for `mechkit.viz` to draw, and the files they are written to."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechkit.core.files import write_atomic
from mechkit.core.metrics import as_metric
from mechkit.core.result import Result
from mechkit.features.words import is_spaceless, parted

if TYPE_CHECKING:
    from mechkit.features.index import FeatureIndex
    from mechkit.features.quality import Quality

BANDS = {
    "top": ("Strongest", "The rows of the corpus where it is strongest, each by its strongest token."),
    "q4": ("Strongest quarter", "Drawn alike from all its firings, and shown by quarters of their strengths."),
    "q3": ("Third quarter", ""),
    "q2": ("Second quarter", ""),
    "q1": ("Weakest quarter", ""),
}
"""What bands of examples are called, and how to read them."""


def feature_payload(
    index: "FeatureIndex", id: int, n: int = 5, effect: Result | None = None, quality: "Quality | None" = None
) -> dict[str, Any]:
    """What the page of a feature shows, as JSON-able data."""
    feature, examples = index.feature(id), index.examples(id, n).rows
    payload: dict[str, Any] = {
        "id": id,
        "about": about(index),
        "labels": feature.labels.to_dict("records"),
        "facts": [
            ("fires on", f"{100 * feature.density:.3g} % of tokens"),
            ("firings", f"{feature.n_firings:,}"),
            ("mean where it fires", f"{feature.mean:.3g}"),
            ("greatest", f"{feature.max:.3g}"),
        ],
        "max": None if np.isnan(feature.max) else feature.max,
        "bands": [
            {"name": name, "note": note, "examples": [_example(index, row) for row in _rows(examples, band)]}
            for band, (name, note) in BANDS.items()
        ],
        "histogram": {key: feature.histogram[key].tolist() for key in ("from", "n")},
        "promoted": list(zip(feature.promoted["text"], feature.promoted["logit"].tolist(), strict=True)),
        "suppressed": list(zip(feature.suppressed["text"], feature.suppressed["logit"].tolist(), strict=True)),
        "similar": _named(index, index.similar(id).rows, "cosine"),
        "cofiring": _named(index, index.cofiring(id).rows, "overlap"),
        "made": made(index),
    }
    if effect is not None:
        payload["effect"] = _effect(id, effect)
    if quality is not None:
        payload["quality"] = quality.facts()
    return payload


def write_feature_page(index: "FeatureIndex", id: int, path: str | Path, n: int = 5, **more: Any) -> Path:
    """Write the page of a feature; returns its path."""
    from mechkit.viz.feature_page import feature_page

    return write_atomic(path, feature_page(feature_payload(index, id, n, **more)))


def about(index: "FeatureIndex") -> str:
    """One line that says which features these are."""
    name = index.manifest["model"]["name"]
    return f"{name} · {index.hook} · {index.sae} · {index.n_features:,} features on {index.n_tokens:,} tokens"


def made(index: "FeatureIndex") -> list[tuple[str, str]]:
    """How an index was made, in names and values."""
    manifest = index.manifest
    model, sae, corpus = manifest["model"], manifest["saes"][index.sae], manifest["corpus"]
    return [
        ("model", f"{model['name']}, {model['sha256'][:12]}"),
        ("SAE", f"{index.sae}, {sae['sha256'][:12]}"),
        ("corpus", f"{corpus['n_rows']:,} rows, {corpus['sha256'][:12]}"),
        ("mechkit", manifest["mechkit"]),
    ]


def first_labels(index: "FeatureIndex") -> dict[int, str]:
    """The first label of every feature that has one, the user's own before automatic ones."""
    found = index.labels.all()
    names: dict[int, str] = {}
    for id, text in zip(found["feature"].tolist(), found["text"].tolist(), strict=True):
        names.setdefault(id, text)
    return names


def _named(index: "FeatureIndex", rows: Any, measure: str) -> list[tuple[int, float, str]]:
    names = first_labels(index)
    pairs = zip(rows["feature"].tolist(), rows[measure].tolist(), strict=True)
    return [(id, value, names.get(id, "")) for id, value in pairs]


def _rows(examples: Any, band: str) -> list[dict[str, Any]]:
    return examples[examples["band"] == band].to_dict("records")


def _example(index: "FeatureIndex", row: Mapping[str, Any]) -> dict[str, Any]:
    values = [None if np.isnan(value) else value for value in row["activations"]]
    kept = {key: row[key] for key in ("activation", "peak", "source")}
    return {**kept, "tokens": parted(row["tokens"], is_spaceless(index)), "activations": values}


def _effect(id: int, effect: Result) -> dict[str, Any]:
    """The changes of one feature, prompt by prompt. Raises ValueError for an effect of other features."""
    own = [i for i, site in enumerate(effect.sites) if site.index == id]
    if not own or effect.scores.ndim != 2:
        raise ValueError(f"the effect given is not of feature {id}; ask index.effect({id}, prompts) and give that")
    meta, changes = effect.meta, effect.scores[own[0]].tolist()
    prompts = meta.get("prompts") or [f"prompt {i}" for i in range(len(changes))]
    done = (
        f"held at {meta['steer']:g}"
        if "steer" in meta
        else "taken out"
        if meta["scale"] == 0
        else f"× {meta['scale']:g}"
    )
    how = f"What {meta['metric']} changes by when the feature is {done}."
    rows = list(zip(prompts, meta["before"], changes, strict=True))
    return {"metric": f"{meta['metric']} before", "unit": effect.unit, "how": how, "rows": rows}


def prompt_payload(index: "FeatureIndex", prompt: Any, n: int = 5, effect: Any = None) -> dict[str, Any]:
    """What the page of a prompt shows, as JSON-able data: the `n` first features of each token."""
    found = index.lookup(prompt, effect=effect)
    every, names = found.rows, first_labels(index)
    tops = [found.at(pos).top(n).rows.to_dict("records") for pos in range(len(found.tokens))]
    shown = {row["feature"] for top in tops for row in top}
    most = index.max if index.arrays["top_value"].shape[1] else np.full(index.n_features, np.nan)
    features = []
    for id in [id for id in dict.fromkeys(every["feature"].tolist()) if id in shown]:
        own = every[every["feature"] == id]
        active = np.zeros(len(found.tokens))
        active[np.asarray(own["pos"])] = np.asarray(own["activation"])
        known = None if np.isnan(most[id]) else max(float(most[id]), float(np.abs(active).max()))
        one = {"id": id, "label": names.get(id, ""), "activations": active.tolist(), "max": known}
        features.append(one if effect is None else {**one, "effect": float(np.asarray(own["effect"])[0])})
    words = parted(found.tokens["token"].tolist(), is_spaceless(index))
    return {
        "about": about(index),
        "tokens": words,
        "errors": found.tokens["error"].tolist(),
        "counts": found.tokens["n_features"].tolist(),
        "features": features,
        "tops": [[_firing(row) for row in top] for top in tops],
        "effect": None if effect is None else (as_metric(effect).name, found.unit),
        "made": made(index),
    }


def write_prompt_page(index: "FeatureIndex", prompt: Any, path: str | Path, n: int = 5, effect: Any = None) -> Path:
    """Write the page of a prompt; returns its path."""
    from mechkit.viz.prompt_page import prompt_page

    return write_atomic(path, prompt_page(prompt_payload(index, prompt, n, effect)))


def _firing(row: Mapping[str, Any]) -> tuple[int, float, float, float | None]:
    """Feature, activation, share and effect of a firing."""
    return int(row["feature"]), float(row["activation"]), float(row["share"]), row.get("effect")

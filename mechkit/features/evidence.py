"""What is known of where a feature fires, in two halves: one to describe it by, one to test the description on.

Every row of the corpus belongs to one half or the other, by a hash of the row, the feature and a seed, so that no text
that a description was made from is among those that it is tested on.
"""

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from mechkit.features.reading import device_of, encoded, padded, values_at
from mechkit.features.words import is_spaceless, parted, word_at

if TYPE_CHECKING:
    from mechkit.features.index import FeatureIndex

N_BACKGROUND = 20_000
"""Places of the corpus whose words say how common each is."""
ROUNDS, ROWS = 20, 32
"""Draws of rows in search of places where a feature is silent, and rows of a draw."""


@dataclass(frozen=True)
class Evidence:
    """What a labeller may see of one feature."""

    id: int
    """Its number."""
    examples: pd.DataFrame
    """Its firings in the first half of the rows, strongest first: `activation`, `tokens`, their `activations`, `peak`
    (which of them), `word` (the whole word there) and `text`."""
    promoted: pd.DataFrame
    """Tokens whose logits it raises most: `token`, `text`, `logit`."""
    suppressed: pd.DataFrame
    """The same for those that it lowers."""
    background: Mapping[str, float]
    """Share of the corpus's places that have each word."""


def evidence(index: "FeatureIndex", id: int, seed: int = 0) -> Evidence:
    """What a labeller may see of a feature: its strongest rows and drawn firings, of the half that is not tested on."""
    feature, rows = index.feature(id), []
    for kind in ("top", "sample"):
        for rank in _ranks(index, id, kind):
            position = int(index.arrays[f"{kind}_position"][id, rank])
            if not is_held_out(index.text.rows.row_of(position), id, seed):
                _, value, text, tokens, active, peak, *_ = index._example(id, kind, kind, rank)
                word = word_at(tokens, peak, is_spaceless(index))
                rows.append((position, value, tokens, active, peak, word, text))
    columns = ["position", "activation", "tokens", "activations", "peak", "word", "text"]
    examples = pd.DataFrame(rows, columns=columns).drop_duplicates("position")
    order = np.argsort(-np.abs(np.asarray(examples["activation"], float)), kind="stable")
    examples = examples.iloc[order].reset_index(drop=True)
    return Evidence(id, examples, feature.promoted, feature.suppressed, background(index))


def is_held_out(row: int, id: int, seed: int) -> bool:
    """Whether a row of the corpus is one that descriptions of a feature are tested on."""
    return zlib.crc32(f"{seed}:{id}:{row}".encode()) % 2 == 1


def background(index: "FeatureIndex") -> dict[str, float]:
    """Share of the corpus's places that have each word, from a sample of them; kept with the index."""
    kept = vars(index)
    if "_background" not in kept:
        corpus = index.text.rows
        places = np.random.default_rng(0).integers(0, corpus.n_tokens, N_BACKGROUND)
        counts: Counter[str] = Counter()
        for place in np.sort(places).tolist():
            peak, tokens = index.text.around(place, 6, 6)
            counts[word_at(tokens, peak, is_spaceless(index))] += 1
        kept["_background"] = {word: n / N_BACKGROUND for word, n in counts.items()}
    return kept["_background"]


def held_out_firings(index: "FeatureIndex", id: int, n: int, seed: int) -> list[str]:
    """At most `n` texts of the held-out half in which a feature fires: firings drawn alike from all, one a row."""
    places: dict[int, int] = {}
    for rank in _ranks(index, id, "sample"):
        position = int(index.arrays["sample_position"][id, rank])
        row = index.text.rows.row_of(position)
        if is_held_out(row, id, seed):
            places.setdefault(row, position)
    every = list(places.values())
    chosen = np.linspace(0, len(every) - 1, min(n, len(every))).round().astype(int)
    return [_text(index, every[i]) for i in chosen.tolist()]


def held_out_silence(index: "FeatureIndex", id: int, n: int, seed: int) -> list[str]:
    """At most `n` texts of the held-out half in which a feature fires nowhere, at places drawn alike, one a row.

    Cost: a forward pass, as far as the SAE's hook, of the rows drawn.
    """
    found: list[str] = []
    for rows in _draws(index, id, seed):
        for row, place, active in _activity(index, id, rows, seed):
            first = int(index.text.rows.starts[row])
            before, after = index.manifest["settings"]["window"]
            around = active[max(0, place - before) : place + after + 1]
            if len(found) < n and not around.any():
                found.append(_text(index, first + place))
        if len(found) >= n:
            break
    return found


def _draws(index: "FeatureIndex", id: int, seed: int) -> Iterator[list[int]]:
    """Held-out rows in a random order, some at a time."""
    order = np.random.default_rng([seed, id]).permutation(index.text.rows.n_rows).tolist()
    held = [row for row in order if is_held_out(row, id, seed)]
    for i in range(0, min(len(held), ROUNDS * ROWS), ROWS):
        yield held[i : i + ROWS]


def _activity(index: "FeatureIndex", id: int, rows: Sequence[int], seed: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Of each row a place in it drawn at random, and the feature's activations, 0 on tokens that do not count."""
    from mechkit.features.questions import model_of, sae_of

    model, sae, corpus = model_of(index), sae_of(index), index.text.rows
    ids = [corpus.tokens[corpus.starts[row] : corpus.starts[row + 1]].astype(np.int64) for row in rows]
    alike = [[i] for i in range(len(ids))] if model.cfg.attention_dir != "causal" else [list(range(len(ids)))]
    for group in alike:
        tokens, real = padded([ids[i] for i in group], device_of(model))
        with torch.no_grad():
            active = encoded(sae, values_at(model, tokens, [index.hook])[index.hook], real)[:, id].float().cpu().numpy()
        ends = np.cumsum([len(ids[i]) for i in group])[:-1]
        for i, own in zip(group, np.split(active, ends), strict=True):
            counted = ~np.isin(ids[i], index.manifest["settings"]["ignore"])
            place = int(np.random.default_rng([seed, id, rows[i]]).integers(len(own)))
            yield rows[i], place, own * counted


def _ranks(index: "FeatureIndex", id: int, kind: str) -> list[int]:
    return np.flatnonzero(index.arrays[f"{kind}_position"][id] >= 0).tolist()


def _text(index: "FeatureIndex", position: int) -> str:
    before, after = index.manifest["settings"]["window"]
    _, tokens = index.text.around(position, before, after)
    return "".join(parted(tokens, is_spaceless(index)))

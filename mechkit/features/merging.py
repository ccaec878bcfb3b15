"""The parts of a scan put together: arrays by feature, weights, and the manifest that says the index is whole.

Firings of all activations (`keep="all"`) are written twice: by token (`token_ends`, `by_token_*`) and by feature,
strongest first (`feature_ends`, `by_feature_*`).
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from mechkit.core.files import write_array, write_atomic
from mechkit.core.progress import progress
from mechkit.features import parts
from mechkit.features.best import Best, Firings, ranks
from mechkit.features.corpus import Rows
from mechkit.features.directions import extremes, unembedding, written_directions
from mechkit.features.selection import N_BINS, bin_edges, position_hash, sample_key, top_key
from mechkit.features.settings import Settings
from mechkit.features.together import cofiring

MANIFEST, SAES = "manifest.json", "saes"
N_TOKENS, N_TOGETHER = 10, 10
"""Promoted and suppressed tokens, and co-firing features, kept per feature."""


def merge(model, saes: Mapping[str, Any], rows: Rows, out: Path, settings: Settings) -> None:
    """Write the index's arrays from all parts, and then its manifest."""
    found = parts.find_parts(out)
    paths = [found[number] for number in sorted(found)]
    unembed = unembedding(model)
    write_array(out / "unembed.npy", unembed.cpu().numpy())
    write_atomic(out / "vocabulary.json", json.dumps(_vocabulary(model)))
    n_counted = 0
    for number, (name, sae) in enumerate(progress(list(saes.items()), "putting together")):
        home = out / SAES / name
        home.mkdir(parents=True, exist_ok=True)
        arrays, n_counted = _of_features(paths, number, sae.cfg.d_sae, settings)
        arrays |= _of_weights(model, sae, unembed)
        for key, value in arrays.items():
            write_array(home / f"{key}.npy", value)
        if settings.keep == "all":
            _everything(paths, number, arrays["histogram"].sum(1), rows.n_tokens, home)
        _save_sae(sae, home / "sae")
    _write_manifest(out, rows, n_counted, settings)


def _save_sae(sae, home: Path) -> None:
    """The SAE in SAELens's format; its own `save_model` refuses weights that are views of others."""
    home.mkdir(exist_ok=True)
    weights = sae.state_dict()
    sae.process_state_dict_for_saving(weights)
    write_atomic(home / "sae_weights.safetensors", save({key: one.cpu().contiguous() for key, one in weights.items()}))
    write_atomic(home / "cfg.json", json.dumps(sae.cfg.to_dict()))


def _write_manifest(out: Path, rows: Rows, n_counted: int, settings: Settings) -> None:
    plan = json.loads((out / "plan.json").read_text())
    files = [p for p in sorted(out.rglob("*")) if p.is_file() and parts.FOLDER not in p.parts]
    files = [p for p in files if p.name not in (MANIFEST, ".lock", "labels.sqlite")]
    hashes = {p.relative_to(out).as_posix(): {"bytes": p.stat().st_size, "sha256": _hash(p)} for p in files}
    corpus = {key: value for key, value in rows.about.items() if key != "sources"}
    whole = {**plan, "corpus": corpus, "n_counted": n_counted, "bin_edges": bin_edges(), "files": hashes}
    write_atomic(out / MANIFEST, json.dumps(whole, indent=1) + "\n")


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _vocabulary(model) -> list[str] | None:
    """The text of every token; None for a model without a tokenizer."""
    if model.tokenizer is None:
        return None
    ids = list(range(model.cfg.d_vocab))
    texts = model.tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    words = model.tokenizer.convert_ids_to_tokens(ids)
    return [
        f" {text}" if str(word).startswith("▁") and text[:1] != " " else text
        for text, word in zip(texts, words, strict=True)
    ]


def _parts_of(paths: list[Path], number: int) -> Iterator[dict[str, Tensor]]:
    for path in paths:
        yield parts.of_sae(parts.read_part(path), number)


def _of_features(
    paths: list[Path], number: int, n_features: int, settings: Settings
) -> tuple[dict[str, np.ndarray], int]:
    """Counts, examples and co-firing of one SAE, and the number of tokens that counted."""
    width = settings.window[0] + 1 + settings.window[1]
    best = {
        "top": Best(n_features, settings.top, width, "cpu"),
        "sample": Best(n_features, settings.sample, width, "cpu"),
    }
    histogram, total = torch.zeros(n_features * N_BINS, dtype=torch.long), torch.zeros(n_features).double()
    n_tokens, together = torch.zeros(2, dtype=torch.long), []
    for part in _parts_of(paths, number):
        histogram, total, n_tokens = histogram + part["histogram"], total + part["total"], n_tokens + part["n_tokens"]
        together.append((part["together.n"], part["together.feature"]))
        for kind, kept in best.items():
            firings = Firings(*(part[f"{kind}.{field}"] for field in Firings.__dataclass_fields__))
            kept.offer(_keys(kind, firings), firings)
    n, feature = (torch.cat(one).numpy() for one in zip(*together, strict=True))
    fired, other, shared = cofiring(n, feature, n_features, N_TOGETHER)
    arrays = {
        "histogram": histogram.reshape(n_features, N_BINS).numpy(),
        "total": total.numpy(),
        "cofiring_n": np.append(fired, int(n_tokens[1])),
        "cofiring_feature": other,
        "cofiring_shared": shared,
    }
    for kind, kept in best.items():
        arrays |= {f"{kind}_{key}": value for key, value in _table(kept, n_features).items()}
    return arrays, int(n_tokens[0])


def _keys(kind: str, firings: Firings) -> Tensor:
    if kind == "top":
        return top_key(firings.value)
    return sample_key(position_hash(firings.position), firings.feature)


def _table(best: Best, n_features: int) -> dict[str, np.ndarray]:
    """`[feature, rank]`: place (-1 where there is none), activation and window of each firing kept.

    The sample is sorted by strength, strongest first, as the top is; ties go to the earlier place.
    """
    firings = best.kept()
    order = firings.position.argsort(stable=True)
    order = order[firings.value.abs()[order].argsort(descending=True, stable=True)]
    firings = firings[order[firings.feature[order].argsort(stable=True)]]
    rank = ranks(firings.feature, n_features)
    position = np.full((n_features, best.size), -1, np.int64)
    value = np.full((n_features, best.size), np.nan, np.float32)
    window = np.full((n_features, best.size, firings.window.shape[1]), np.nan, np.float32)
    at = firings.feature.numpy(), rank.numpy()
    position[at], value[at], window[at] = firings.position.numpy(), firings.value.numpy(), firings.window.numpy()
    return {"position": position, "value": value, "window": window}


def _of_weights(model, sae, unembed: Tensor) -> dict[str, np.ndarray]:
    decoder = sae.W_dec.detach().float()
    arrays = {"direction": (decoder / decoder.norm(dim=1, keepdim=True).clamp(min=1e-12)).cpu().numpy()}
    written = written_directions(model, sae)
    if written is not None:
        names = ("promoted_token", "promoted_logit", "suppressed_token", "suppressed_logit")
        arrays["written"] = written.cpu().numpy()
        arrays |= {key: one.cpu().numpy() for key, one in zip(names, extremes(written, unembed, N_TOKENS), strict=True)}
    return arrays


def _everything(paths: list[Path], number: int, fired: np.ndarray, n_tokens: int, home: Path) -> None:
    """Every activation, by token and by feature."""

    def array(name: str, size: int, kind: Any) -> np.ndarray:
        made = np.lib.format.open_memmap(home / f"{name}.npy", "w+", kind, (size,))
        if hasattr(os, "posix_fallocate"):  # a write to a map on a full disk kills the process
            with (home / f"{name}.npy").open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, made.offset + made.nbytes)
        return made

    n_firings = int(fired.sum())
    write_array(home / "feature_ends.npy", np.cumsum(fired))
    of_token = array("token_ends", n_tokens, np.int64)
    by_token = array("by_token_feature", n_firings, np.int32), array("by_token_value", n_firings, np.float32)
    by_feature = array("by_feature_position", n_firings, np.int64), array("by_feature_value", n_firings, np.float32)
    free, token, done = np.cumsum(fired) - fired, 0, 0
    for part in _parts_of(paths, number):
        n, feature, value = (part[f"all.{key}"].numpy() for key in ("n", "feature", "value"))
        of_token[token : token + len(n)] = done + np.cumsum(n)
        by_token[0][done : done + len(feature)], by_token[1][done : done + len(feature)] = feature, value
        position = token + np.repeat(np.arange(len(n)), n)
        order = np.argsort(feature, kind="stable")
        own = np.bincount(feature, minlength=len(fired))
        to = np.repeat(free - (np.cumsum(own) - own), own) + np.arange(len(feature))
        by_feature[0][to], by_feature[1][to] = position[order], value[order]
        free, token, done = free + own, token + len(n), done + len(feature)
    _strongest_first(np.cumsum(fired), *by_feature)


def _strongest_first(ends: np.ndarray, position: np.ndarray, value: np.ndarray, at_once: int = 1 << 22) -> None:
    """Sort every feature's firings in place by strength, then place, as many features at a time as hold `at_once`."""
    first = 0
    while first < len(ends):
        start = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + at_once, side="right")))
        own = slice(start, int(ends[last - 1]))
        feature = np.repeat(np.arange(first, last), np.diff(ends[first:last], prepend=start))
        order = np.lexsort((position[own], -np.abs(value[own]), feature))
        position[own], value[own] = position[own][order], value[own][order]
        first = last

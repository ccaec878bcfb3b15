"""A feature index as an argument: which index describes which dictionary of a graph, and what it says of a feature.

Any object with the members of `Indexed` is an index; `mechkit.scan` makes them. An index of several dictionaries
stands for all of them.

    index = mk.scan(model, [load_sae(folder, model) for folder in folders], "stories.txt", "features")
    graph = mk.trace(model, "the capital of France is", index=index)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mechkit.core.weights import weights_hash
from mechkit.dictionaries.loading import WEIGHTS, read_saelens
from mechkit.dictionaries.stored import Stored
from mechkit.graphs.nodes import Node

AUTOMATIC = " (automatic)"
"""What the source of a label ends with where a program made it."""

_LABELS = ("feature", "text", "source", "automatic")
"""Columns of a table of labels."""

_OFF = 0.01
"""Largest distance of a stored direction from the dictionary's, relative to its length: what bfloat16 rounds off."""


@runtime_checkable
class Indexed(Protocol):
    """What a graph asks of the index of one dictionary."""

    folder: Path
    """Where it lies; the dictionary's copy is in `saes/{sae}/sae`, in SAELens's format."""
    manifest: dict[str, Any]
    """What made it: `model.sha256` is the hash of the scanned model's weights."""
    sae: str
    """The dictionary's name."""

    @property
    def saes(self) -> list[str]:
        """The dictionaries that were scanned together."""
        ...

    @property
    def hook(self) -> str:
        """The hook that the dictionary reads."""
        ...

    @property
    def n_features(self) -> int:
        """How many features it has."""
        ...

    @property
    def density(self) -> Any:
        """`[feature]`: share of the corpus's tokens on which each fires."""
        ...

    @property
    def labels(self) -> Any:
        """`labels.all()` is a table of `feature`, `text`, `source` and `automatic`, a user's own first."""
        ...

    def examples(self, id: int, n: int = 5) -> Any:
        """`examples(feature, n).frame()` is a table of `band`, `tokens`, `activations` and `peak`."""
        ...

    def open(self, path: Any, sae: Any = None) -> Any:
        """The index of another of the dictionaries in a folder."""
        ...


def indexed_layers(engine, given: Any, nodes: Sequence[Node]) -> dict[int, Any]:
    """The index of each layer's dictionary, of those given: one, several, or a mapping from layers or names.

    Layers without one are left out. An index matches where the model's weights hash alike, and hook, size, and the
    directions of the features among `nodes` are the dictionary's. Cost: one read of every weight of the model.
    Raises ValueError, with which and how, where an index is of another model or describes no dictionary of the graph.
    """
    if not engine.bases:
        raise ValueError("this model has no MLPs, so its graph has no features for an index to describe")
    everything = list(_each(engine, given))
    now = weights_hash(engine.frozen.model)
    for _, index in everything:
        _require_model(index, now)
    found: dict[int, Any] = {}
    for basis in engine.bases:
        candidates = [index for layer, index in everything if layer in (None, basis.layer) and _reads(index, basis)]
        ids = sorted({node.index or 0 for node in nodes if node.layer == basis.layer})
        reasons = [_difference(index, basis, ids) for index in candidates]
        fitting = [index for index, reason in zip(candidates, reasons, strict=True) if reason is None]
        if len(fitting) > 1:
            raise ValueError(
                f"{', '.join(map(_called, fitting))} all describe the dictionary '{basis.name}' of layer "
                f"{basis.layer}; give one of them"
            )
        if candidates and not fitting:
            raise ValueError(
                f"no index given is of the graph's dictionary '{basis.name}': {'; '.join(map(str, reasons))}"
            )
        if fitting:
            found[basis.layer] = fitting[0]
    _require_used(engine, everything, found)
    return found


def _each(engine, given: Any) -> Iterator[tuple[int | None, Any]]:
    """Indexes of one dictionary each, with the layer that they were given for, if any."""
    if isinstance(given, Mapping):
        names = {basis.name: basis.layer for basis in engine.bases}
        for key, index in given.items():
            layer = names.get(key, key)
            if layer not in range(len(engine.bases)):
                raise ValueError(f"no dictionary {key!r} in this graph; it has layers 0 to {len(engine.bases) - 1}, "
                                 f"called {', '.join(names)}")  # fmt: skip
            yield layer, index
        return
    for index in given if isinstance(given, Sequence) else [given]:
        if not all(hasattr(index, name) for name in ("folder", "manifest", "saes", "hook")):
            raise TypeError(f"an index is what mechkit.scan gives, not {type(index).__name__}")
        several = len(index.saes) > 1
        yield from ((None, index.open(index.folder, name) if several else index) for name in index.saes)


def _called(index: Any) -> str:
    return f"'{index.sae}' of the index in '{index.folder}'"


def _reads(index: Any, basis) -> bool:
    return index.hook == basis.hook_in


def _require_model(index: Any, now: str) -> None:
    kept = index.manifest["model"]
    if kept["sha256"] != now:
        raise ValueError(
            f"{_called(index)} was made with other weights than the traced model's: sha256 of '{kept['name']}' was "
            f"{kept['sha256'][:12]}, this model's is {now[:12]}; scan with this model"
        )


def _require_used(engine, everything: Sequence[tuple[int | None, Any]], found: Mapping[int, Any]) -> None:
    for layer, index in everything:
        if layer is not None and layer not in found:
            raise ValueError(
                f"{_called(index)} was given for layer {layer}; it reads {index.hook}, the dictionary there "
                f"{engine.bases[layer].hook_in}"
            )
    if not found:
        hooks = ", ".join(sorted({index.hook for _, index in everything})) or "nothing"
        raise ValueError(
            f"the index is of features at {hooks}; the dictionaries of this graph read "
            f"{', '.join(basis.hook_in for basis in engine.bases)}: scan those"
        )


def _difference(index: Any, basis, ids: Sequence[int]) -> str | None:
    """How an index's dictionary differs from a graph's; None where it does not, as far as these features go."""
    if index.n_features != basis.d_features:
        return f"{_called(index)} has {index.n_features} features, the dictionary {basis.d_features}"
    home = Path(index.folder) / "saes" / index.sae / "sae"
    cfg, small = read_saelens(home, left_out=("W_enc", "W_dec"))
    out = (cfg.get("metadata") or {}).get("hook_name_out")
    if out != basis.hook_out:
        return f"{_called(index)} writes to {out}, the dictionary to {basis.hook_out}"
    if len(basis.reaches) != 1 or len(basis.parts) != 1:
        return f"{_called(index)} is of a transcoder of one layer, which the dictionary is not"
    if not ids:
        return None
    rows, added = basis.reads(ids)
    mine = {"W_enc": rows, "W_dec": basis.writes(ids, basis.layer), "b_enc": added}
    theirs = {name: Stored(home / WEIGHTS, name, by_column=name == "W_enc").rows(ids) for name in ("W_enc", "W_dec")}
    theirs["b_enc"] = small["b_enc"][list(ids)]
    if getattr(basis, "threshold", None) is not None or "threshold" in small:
        zeros, own = torch.zeros(len(ids)), getattr(basis, "threshold", None)
        mine["threshold"] = zeros if own is None else own[list(ids)]
        theirs["threshold"] = small["threshold"][list(ids)] if "threshold" in small else zeros
    for name, value in mine.items():
        far = _distance(value, theirs[name])
        if float(far.max()) > _OFF:
            worst = int(far.argmax())
            return f"{_called(index)} has another {name} of feature {ids[worst]}: it differs by {float(far[worst]):.0%}"
    return None


def _distance(mine: Tensor, theirs: Tensor) -> Tensor:
    """Distance of each row from the other's, relative to its length; numbers, to the largest of them."""
    mine, theirs = mine.detach().cpu().float(), theirs.cpu().float()
    if mine.ndim == 1:
        return (mine - theirs).abs() / theirs.abs().max().clamp_min(1e-6)
    return (mine - theirs).norm(dim=1) / theirs.norm(dim=1).clamp_min(1e-6)


def example_lists(index: Any, feature: int, n: int) -> list[tuple[list[str], list[float], int]]:
    """Where a feature is strongest: tokens, its activation on each (0 where that was not kept), and the peak."""
    rows = index.examples(feature, n).frame()
    return [
        (list(row.tokens), [0.0 if math.isnan(value) else float(value) for value in row.activations], int(row.peak))
        for row in rows[rows["band"] == "top"].itertuples()
    ]


def labels_of(index: Any) -> dict[int, list[tuple[str, str]]]:
    """What features are called and by whom, by their number, the user's own first; automatic ones marked so."""
    found: dict[int, list[tuple[str, str]]] = {}
    rows = index.labels.all()
    for feature, text, source, automatic in zip(*(rows[name] for name in _LABELS), strict=True):
        found.setdefault(int(feature), []).append((text, source + AUTOMATIC * bool(automatic)))
    return found

"""`scan`: one pass of a model over a corpus, for all features of one or several SAEs.

The corpus is tokenised to disk, then read in stretches. Each stretch is written as a part (`parts`), and the parts are
put together at the end (`merging`). Killed at any moment and called again, a scan goes on where it stopped and gives
the index that an undisturbed one gives, bit for bit.

    index = scan(model, sae, "stories.txt", "features")
    index.examples(12)
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechkit.core.files import write_atomic
from mechkit.core.progress import progress
from mechkit.features import parts
from mechkit.features.corpus import Rows, has_rows, tokenise
from mechkit.features.firing import Fired, fired
from mechkit.features.provenance import made_by, refuse
from mechkit.features.reading import device_of, named_saes, padded, require_fit, values_at
from mechkit.features.selection import MASK, Places, Selection, position_hash
from mechkit.features.settings import Settings, settings_for
from mechkit.features.sizes import full_disk_said, require_room
from mechkit.features.sources import Documents, documents

PLAN, MANIFEST, LOCK = "plan.json", "manifest.json", ".lock"
ENGINES = ("local", "ray")
WHOLE = 1 << 24
"""Activations of whole rows whose firings are taken in together, at most, where a row has no more."""


def scan(
    model,
    saes: Any,
    corpus: Any,
    out: str | Path,
    *,
    keep: str = "examples",
    column: str | None = None,
    context: int | None = None,
    bos: bool | None = None,
    ignore: Sequence[int] | None = None,
    top: int = 20,
    sample: int = 64,
    window: tuple[int, int] = (16, 8),
    cofiring: int = 200_000,
    batch: int = 4096,
    shard: int = 1 << 17,
    engine: str = "local",
    workers: int | None = None,
):
    """The `FeatureIndex` of `saes` (one, a list, or a mapping of names) on `corpus`, written into the folder `out`.

    `corpus` is what `documents` reads: paths of text, JSONL and Parquet, a dataset, texts, or token ids `[row, pos]`.
    A document longer than `context` goes on in the next row; empty, unreadable and invalid ones are passed over and
    counted. `context`, `bos` (each row of text begins with one) and `ignore` (token ids on which nothing is counted)
    are those that the SAEs were trained with unless given. `keep="all"` stores every activation besides the examples.

    Per feature: firings, a histogram of strengths, the `top` strongest rows, `sample` firings drawn alike from all,
    each with `window` tokens before and after, and the features it fires with, on about `cofiring` tokens.

    `engine="ray"` scans stretches of `shard` tokens on `workers` Ray Data actors (one a GPU, or a core, unless given),
    from the same code to the same index; it needs `mechkit[ray]`.

    Unit: the SAE's activations. Cost: one forward pass of the corpus as far as the SAEs' last hook, and one encoding
    per SAE; memory for `batch` tokens. Called again on a folder that holds part of it, goes on; on a whole one, opens
    it.
    Raises ValueError for SAEs that do not fit, a corpus with nothing to read, a folder made by something else, too
    little room on the disk, and a folder that another scan is writing; OSError where the disk fills up.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}, not {engine!r}")
    saes, out = named_saes(saes), Path(out)
    require_fit(model, saes)
    more = {"keep": keep, "top": top, "sample": sample, "window": window, "cofiring": cofiring}
    settings = settings_for(model, saes, context, bos, ignore, **more, batch=batch, shard=shard)
    from mechkit.features.index import FeatureIndex
    from mechkit.features.merging import merge

    with locked(out), full_disk_said(out):
        rows = _begun(model, saes, documents(corpus, column), out, settings)
        if not (out / MANIFEST).is_file():
            with torch.no_grad():
                _scan_stretches(model, saes, rows, out, settings, engine, workers)
                merge(model, saes, rows, out, settings)
        shutil.rmtree(out / parts.FOLDER, ignore_errors=True)
    return FeatureIndex.open(out, model=model)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go of when a process ends. Raises ValueError where it is held."""
    from filelock import FileLock, Timeout

    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"cannot scan into '{out}': it is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"another scan is writing '{out}'; wait for it, or name another folder") from error


def _begun(model, saes: Mapping[str, Any], found: Documents, out: Path, settings: Settings) -> Rows:
    """The tokenised corpus of a scan that is new or goes on. Raises ValueError where something else began it."""
    made = made_by(model, saes, settings.as_dict())
    if (out / PLAN).is_file():
        refuse(out, json.loads((out / PLAN).read_text()), made)
    elif any(path.name != LOCK and not path.name.startswith(f".{PLAN}.") for path in out.iterdir()):
        raise ValueError(f"'{out}' holds other files; scan into a new folder")
    for left in out.rglob(".*.*"):  # of writes that were cut short
        left.unlink()
    if has_rows(out):
        for _ in found:
            pass
        rows = Rows.open(out)
        refuse(out, {"corpus": rows.about["sha256"]}, {"corpus": found.sha256})
    else:
        write_atomic(out / PLAN, json.dumps(made, indent=1) + "\n")
        rows = tokenise(model, found, out, settings.context, settings.bos)
    return rows


@dataclass(frozen=True)
class Batch:
    """Rows of the corpus for one forward pass."""

    rows: Sequence[int]
    """Their numbers."""
    progress_size: int
    """How many tokens they have."""


def stretches(rows: Rows, size: int) -> list[range]:
    """The rows of each stretch: those that begin in the same `size` tokens."""
    number = rows.starts[:-1] // size
    edges = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), rows.n_rows]
    return [range(first, last) for first, last in pairwise(edges)]


def batches(rows: Rows, stretch: range, size: int, alike: bool) -> list[Batch]:
    """The rows of a stretch, longest first, as many together as fill `size` tokens with their padding.

    With `alike` only rows of one length are put together.
    """
    lengths = np.diff(rows.starts[stretch.start : stretch.stop + 1])
    found: list[list[int]] = []
    width = 0
    for i in np.argsort(-lengths, kind="stable").tolist():
        if found and (len(found[-1]) + 1) * width <= size and not (alike and lengths[i] != width):
            found[-1].append(stretch.start + i)
        else:
            found.append([stretch.start + i])
            width = int(lengths[i])
    return [Batch(group, int(lengths[np.array(group) - stretch.start].sum())) for group in found]


def _scan_stretches(
    model, saes: Mapping[str, Any], rows: Rows, out: Path, settings: Settings, engine: str, workers: int | None
) -> None:
    whole = stretches(rows, settings.shard)
    (out / parts.FOLDER).mkdir(exist_ok=True)
    done = parts.find_parts(out)
    left = {number: one for number, one in enumerate(whole) if number not in done}
    n_left = sum(int(rows.starts[one.stop] - rows.starts[one.start]) for one in left.values())
    if left:
        require_room(out, Scan(model, saes, rows, settings).sizes(next(iter(left.values()))), n_left, rows.n_tokens)
    if left and engine == "ray":
        from mechkit.features.on_ray import scanned_on_ray

        found = scanned_on_ray(model, saes, rows, left, settings, workers)
        for one in progress(found, "scanning, tokens", n_left):
            parts.write_part(out, one.number, one.raw)
        return
    state = Scan(model, saes, rows, settings)

    def todo() -> Iterator[Batch]:
        for number, stretch in left.items():
            state.begin()
            yield from state.batches(stretch)
            parts.write_part(out, number, parts.packed(state.part(stretch)))

    for group in progress(todo(), "scanning, tokens", n_left):
        state.add(group)


class Scan:
    """One model and its SAEs at work on the rows of a corpus."""

    def __init__(self, model, saes: Mapping[str, Any], rows: Rows, settings: Settings) -> None:
        self.model, self.saes, self.rows, self.settings = model, saes, rows, settings
        self.device = device_of(model)
        self.hooks = {name: sae.cfg.metadata.hook_name for name, sae in saes.items()}
        kept = settings.top, settings.sample, settings.window
        self.selections = {name: Selection(sae.cfg.d_sae, *kept, self.device) for name, sae in saes.items()}
        self.ignore = torch.tensor(settings.ignore, dtype=torch.long, device=self.device)
        self.alike = model.cfg.attention_dir != "causal"
        self.below = min(1.0, settings.cofiring / rows.n_tokens) * (MASK + 1)
        self.begin()

    def begin(self) -> None:
        """Begin a stretch."""
        for selection in self.selections.values():
            selection.clear()
        self._together = {name: [] for name in self.saes}
        self._all = {name: [] for name in self.saes}
        self._n_drawn = 0

    def whole(self, stretch: range) -> dict[str, Tensor]:
        """What a whole stretch gives."""
        self.begin()
        for group in self.batches(stretch):
            self.add(group)
        return self.part(stretch)

    def batches(self, stretch: range) -> list[Batch]:
        """The forward passes of a stretch."""
        return batches(self.rows, stretch, self.settings.batch, self.alike)

    def add(self, group: Batch) -> None:
        """Run the model on some rows, and take in what every SAE makes of them."""
        starts = self.rows.starts
        ids = [self.rows.tokens[starts[row] : starts[row + 1]].astype(np.int64) for row in group.rows]
        tokens, real = padded(ids, self.device)
        values = values_at(self.model, tokens, self.hooks.values())
        places, ends = self._places(group, tokens[real]), np.cumsum([0, *map(len, ids)])
        drawn = (position_hash(places.position) < self.below) & places.counted
        self._n_drawn += int(drawn.sum())
        for name, sae in self.saes.items():
            step = max(1, WHOLE // (sae.cfg.d_sae * tokens.shape[1]))
            for i in range(0, len(group.rows), step):
                few, own = slice(i, i + step), slice(int(ends[i]), int(ends[min(i + step, len(ids))]))
                firings = fired(sae, values[self.hooks[name]][few], real[few])
                self._take(name, places[own], firings, drawn[own])

    def _places(self, group: Batch, tokens: Int[Tensor, "token"]) -> Places:
        """Where the tokens of a batch are."""
        row = np.asarray(group.rows)
        first = self.rows.starts[row]
        length = self.rows.starts[row + 1] - first
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        columns = np.stack(
            [np.repeat(first, length) + within, np.repeat(row, length), within, np.repeat(length, length)]
        )
        position, of_row, inside, whole = torch.from_numpy(columns.astype(np.int64)).to(self.device)
        return Places(position, of_row, inside, whole, ~torch.isin(tokens, self.ignore))

    def _take(self, name: str, places: Places, firings: Fired, drawn: Bool[Tensor, "token"]) -> None:
        self.selections[name].add(places, firings)
        n = torch.bincount(firings.token, minlength=len(places))
        own = firings.feature if bool(drawn.all()) else firings.feature[drawn[firings.token]]
        self._together[name].append((n[drawn].int(), own.int()))
        if self.settings.keep == "all":
            own = firings if bool(places.counted.all()) else firings[places.counted[firings.token]]
            self._all[name].append((places.position[own.token], own.feature.int(), own.value))

    def part(self, stretch: range) -> dict[str, Tensor]:
        """What the stretch gave, for every SAE. Raises ValueError where activations are not finite."""
        found: dict[str, Tensor] = {}
        for number, (name, selection) in enumerate(self.selections.items()):
            selection.flush()
            if not selection.total.isfinite().all():
                raise ValueError(f"activations of '{name}' are not finite at {self.hooks[name]}; use a wider dtype")
            own = {
                "histogram": selection.histogram.int(),
                "total": selection.total,
                "n_tokens": torch.tensor([selection.n_tokens, self._n_drawn]),
            }
            for kind, best in (("top", selection.top), ("sample", selection.sample)):
                firings = best.kept()
                firings = firings[(firings.row >= stretch.start) & (firings.row < stretch.stop)]
                own |= {f"{kind}.{field}": value for field, value in vars(firings).items()}
            together = (torch.cat(one) for one in zip(*self._together[name], strict=True))
            own |= dict(zip(("together.n", "together.feature"), together, strict=True))
            if self.settings.keep == "all":
                own |= self._everything(name, stretch)
            found |= {f"{number}.{key}": value for key, value in own.items()}
        return found

    def _everything(self, name: str, stretch: range) -> dict[str, Tensor]:
        """Every firing of the stretch, in the corpus's order."""
        position, feature, value = (torch.cat(one) for one in zip(*self._all[name], strict=True))
        first, last = int(self.rows.starts[stretch.start]), int(self.rows.starts[stretch.stop])
        n = torch.bincount(position - first, minlength=last - first)
        order = (position - first).int().sort(stable=True).indices
        return {"all.n": n.int(), "all.feature": feature[order], "all.value": value[order]}

    def sizes(self, stretch: range) -> dict[str, int]:
        """Numbers that decide how much room an index takes; firings per token, where all are kept, by a first batch."""
        s, n_firings, n_tokens = self.settings, 0, 1
        if s.keep == "all":
            group = self.batches(stretch)[0]
            self.add(group)
            for selection in self.selections.values():
                selection.flush()
            n_firings = sum(int(selection.histogram.sum()) for selection in self.selections.values())
            n_tokens = group.progress_size
        d_out = {name: sae.W_dec.shape[1] for name, sae in self.saes.items()}
        features = [sae.cfg.d_sae for sae in self.saes.values()]
        return {
            "features": sum(features),
            "decoder": sum(sae.cfg.d_sae * d_out[name] for name, sae in self.saes.items()),
            "weights": sum(value.numel() * 4 for sae in self.saes.values() for value in sae.state_dict().values()),
            "example": (s.top + s.sample) * (16 + 4 * (s.window[0] + 1 + s.window[1])),
            "unembed": 4 * self.model.cfg.d_vocab_out * self.model.cfg.d_model,
            "firings_per_1000_tokens": 1000 * n_firings // n_tokens,
        }

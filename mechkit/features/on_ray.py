"""The stretches of a scan as work for Ray Data actors, on many GPUs or machines; Ray comes with `mechkit[ray]`.

Every actor holds the model and the SAEs, scans whole stretches as one process does, and sends back what it would have
written; the process that called writes the parts, so a scan that is stopped goes on with either engine.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mechkit.features import parts
from mechkit.features.corpus import Rows
from mechkit.features.scanning import Scan
from mechkit.features.settings import Settings


@dataclass(frozen=True)
class Done:
    """A stretch that an actor has scanned."""

    number: int
    """Which one."""
    raw: bytes
    """The bytes of its part."""
    progress_size: int
    """How many tokens it has."""


class Worker:
    """An actor: a model with its SAEs, which are unpacked once, and the corpus."""

    def __init__(self, work: Any, tokens: np.ndarray, starts: np.ndarray, settings: Settings) -> None:
        model, saes = work
        rows = Rows(tokens, starts, np.zeros((0, 2), np.int64), {})
        self._made = model, saes, rows, settings

    def part(self, stretch: range) -> bytes:
        """The bytes of a stretch's part; nothing is kept of it, as Ray may ask again."""
        return parts.packed(Scan(*self._made).whole(stretch))

    @torch.no_grad()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Scan the stretches of a batch."""
        stretches = [range(*pair) for pair in zip(batch["first"].tolist(), batch["last"].tolist(), strict=True)]
        return {"number": batch["number"], "raw": [self.part(one) for one in stretches]}


def scanned_on_ray(
    model, saes: Mapping[str, Any], rows: Rows, stretches: Mapping[int, range], settings: Settings, workers: int | None
) -> Iterator[Done]:
    """The stretches as they are done, in any order, by `workers` actors: one a GPU for a model on one, else one a core.

    Raises ImportError where Ray is not there.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("engine='ray' needs Ray: pip install 'mechkit[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = float(any(parameter.is_cuda for parameter in model.parameters()))
    n = workers or max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))
    items = [{"number": number, "first": one.start, "last": one.stop} for number, one in stretches.items()]
    shared: Sequence[Any] = [ray.put((model, dict(saes))), np.asarray(rows.tokens), np.asarray(rows.starts), settings]
    work = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Opened, fn_constructor_args=tuple(shared), batch_size=1, concurrency=min(n, len(items)), num_gpus=gpus
    )
    for row in work.iter_rows():
        one = stretches[int(row["number"])]
        yield Done(int(row["number"]), bytes(row["raw"]), int(rows.starts[one.stop] - rows.starts[one.start]))


class _Opened(Worker):
    """A worker whose model lies in Ray's store."""

    def __init__(self, work: Any, *more: Any) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        super().__init__(ray.get(work), *more)

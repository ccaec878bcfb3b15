"""The tokens of a wave that may differ from the base run, packed `[token, ...]`.

Rows (a run on a prompt) are of two kinds. A dense row holds every position from its start on; rows with one start lie
together. A loose row was edited and has not passed an attention since: it holds the edited positions only.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Rows:
    """The rows of a wave: which run and prompt each is, and the position from which it may differ."""

    def __init__(self, run: np.ndarray, prompt: np.ndarray, start: np.ndarray) -> None:
        self.run, self.prompt, self.start = run, prompt, start

    def __len__(self) -> int:
        return len(self.run)


class Front:
    """Where the packed tokens belong: dense groups of `(start, rows)` first, then loose tokens."""

    def __init__(self, rows: Rows, n_pos: int, device: torch.device) -> None:
        self.rows, self.n_pos, self.device = rows, n_pos, device
        self.groups: list[tuple[int, np.ndarray]] = []
        self.loose_row = np.empty(0, dtype=np.int64)
        self.loose_pos = np.empty(0, dtype=np.int64)
        self.joined = np.zeros(len(rows), dtype=bool)

    def index(self, numbers: np.ndarray) -> Tensor:
        """Numbers as an index on the device."""
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self.device)

    @property
    def n_dense(self) -> int:
        """How many tokens the dense rows have."""
        return sum(len(rows) * (self.n_pos - start) for start, rows in self.groups)

    def __len__(self) -> int:
        return self.n_dense + len(self.loose_row)

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and position of every token."""
        row = [np.repeat(rows, self.n_pos - start) for start, rows in self.groups]
        pos = [np.tile(np.arange(start, self.n_pos), len(rows)) for start, rows in self.groups]
        return np.concatenate([*row, self.loose_row]), np.concatenate([*pos, self.loose_pos])

    def gather(self, base: Tensor, row: np.ndarray, pos: np.ndarray) -> Tensor:
        """The base run's values `[prompt, pos, ...]` at these rows' prompts and positions."""
        return base[self.index(self.rows.prompt[row]), self.index(pos)]

    def of_rows(self, base: Tensor, row: np.ndarray) -> Tensor:
        """A copy of the base run's values for each row, all positions."""
        return base[self.index(self.rows.prompt[row])]

    def dense(self, values: Tensor) -> list[Tensor]:
        """The dense groups of packed values, as views `[row, pos, ...]`."""
        sizes = [len(rows) * (self.n_pos - start) for start, rows in self.groups]
        parts = values[: sum(sizes)].split(sizes) if sizes else ()
        return [part.unflatten(0, (len(rows), -1)) for part, (_, rows) in zip(parts, self.groups, strict=True)]

    def loose(self, values: Tensor) -> Tensor:
        """The loose tokens of packed values, a view."""
        return values[self.n_dense :]

    def extend(self, row: np.ndarray, pos: np.ndarray, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Add loose tokens: each packed tensor of `pairs` takes its base run's values there."""
        self.loose_row = np.concatenate([self.loose_row, row])
        self.loose_pos = np.concatenate([self.loose_pos, pos])
        self.joined[row] = True
        return [torch.cat([values, self.gather(base, row, pos)]) for values, base in pairs]

    def regroup(self, parts: Sequence[tuple[int, np.ndarray, Sequence[Tensor]]]) -> list[Tensor]:
        """Packed values of dense rows `(start, rows, [values [row, pos, ...]])`, which take the place of all tokens."""
        starts = sorted({start for start, _, _ in parts})
        order = [[part for part in parts if part[0] == start] for start in starts]
        self.groups = [
            (start, np.concatenate([rows for _, rows, _ in same])) for start, same in zip(starts, order, strict=True)
        ]
        self.loose_row = self.loose_pos = np.empty(0, dtype=np.int64)
        flat = [part for same in order for part in same]
        return [torch.cat([values[i].flatten(0, 1) for _, _, values in flat]) for i in range(len(flat[0][2]))]

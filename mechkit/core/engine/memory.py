"""How much may run at once: a limit in bytes, what a token and a row cost, and what to do when memory runs out."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_SHARE = 0.5
"""Part of free memory that a sweep takes when no limit is named."""

_SLACK = 0.7
"""Part of the limit that is planned for; allocators and kernels take some of the rest."""


def free_memory(device: torch.device) -> int:
    """Bytes free on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Budget:
    """Bytes that a sweep may use above the loaded model."""

    limit: int
    """The most it may use."""
    named: bool
    """Whether the caller named the limit; what does not fit is then an error."""

    @classmethod
    def of(cls, memory: int | None, device: torch.device) -> "Budget":
        """The caller's limit, or half of what is free (at most 2 GiB on a CPU, where more is not faster)."""
        if memory is not None:
            if memory <= 0:
                raise ValueError(f"memory is {memory} bytes; name a positive number of bytes")
            return cls(int(memory), True)
        most = 1 << 62 if device.type == "cuda" else 2 << 30
        return cls(min(int(_SHARE * free_memory(device)), most), False)

    @property
    def planned(self) -> int:
        """Bytes to plan with."""
        return int(_SLACK * self.limit)

    def keeps_weights(self, model) -> bool:
        """Whether the laid out weights of all layers stay for the whole call."""
        return fused_bytes(model) <= self.planned // 4


def fused_bytes(model) -> int:
    """Bytes of every layer's queries, keys and values side by side."""
    cfg = model.cfg
    n_kv = cfg.n_key_value_heads or cfg.n_heads
    return cfg.n_layers * cfg.d_model * (cfg.n_heads + 2 * n_kv) * cfg.d_head * itemsize(model)


def itemsize(model) -> int:
    """Bytes of one number of the model."""
    return next(model.parameters()).element_size()


@dataclass(frozen=True)
class Costs:
    """Bytes that parts of a wave take."""

    token: int
    """A packed token, through a block."""
    row: int
    """Queries, keys, values and stream of a row, all positions, as attention lays them out."""
    laid: int
    """A row laid out in full for an edit."""
    mlp: int
    """A token inside the MLP."""
    logits: int
    """A token's logits, with what metrics make of them."""

    @classmethod
    def of(cls, model, n_pos: int, hidden: bool, in_full: bool, results: bool) -> "Costs":
        """`hidden`, `in_full`, `results`: whether MLP insides, attention, head outputs are edited or read."""
        cfg, size = model.cfg, itemsize(model)
        d_attn, d_mlp = cfg.n_heads * cfg.d_head, 0 if cfg.attn_only else cfg.d_mlp
        mlp = 4 * d_mlp * size
        width = max(
            cfg.d_model + d_attn, d_mlp if hidden else 0, 5 * d_attn + 2 * cfg.n_heads * n_pos if in_full else 0
        )
        width = max(width, cfg.n_heads * cfg.d_model if results else 0)
        token = (6 * cfg.d_model + 6 * d_attn + 3 * cfg.n_heads * cfg.d_model * results) * size + mlp * hidden
        return cls(token, 4 * n_pos * d_attn * size, 4 * n_pos * width * size, mlp, 6 * cfg.d_vocab_out * size)


def chunks(tokens: Sequence[int], rows: Sequence[int], costs: Costs, room: int) -> Iterator[list[int]]:
    """Numbers of consecutive runs that fit into `room` bytes together, by their tokens and rows; at least one each."""
    chunk, used = [], 0
    for run, (n_tokens, n_rows) in enumerate(zip(tokens, rows, strict=True)):
        more = n_tokens * costs.token + n_rows * costs.row
        if chunk and used + more > room:
            yield chunk
            chunk, used = [], 0
        chunk, used = [*chunk, run], used + more
    if chunk:
        yield chunk


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in words or "allocate memory" in words)


def halving(work: Callable[[list[int]], Any], runs: list[int]) -> Iterator[tuple[list[int], Any]]:
    """`work` on all of `runs`, in halves where memory runs out. Raises MemoryError where one run is too much."""
    waiting = [runs]
    while waiting:
        part = waiting.pop()
        try:
            done = work(part)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if len(part) == 1:
                raise MemoryError(
                    "memory ran out on a single run of the sweep; take fewer or shorter prompts"
                ) from error
            done = None
        if done is not None:
            yield part, done
            continue
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(part) // 2
        waiting += [part[middle:], part[:middle]]

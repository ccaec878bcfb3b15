"""Counters: FLOPs of matrix products, operations and kernels launched, peak memory."""

import ctypes
import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""What Linux takes as the order to set the peak of resident memory to its present value."""


class Operations(TorchDispatchMode):
    """Counts the operations that compute: on CUDA each is a kernel or more, views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += not func.is_view
        return func(*args, **(kwargs or {}))


def counted(work: Callable[[], T]) -> tuple[T, float, int]:
    """What `work` gives, FLOPs of its matrix products and attention, and how many operations it made."""
    with FlopCounterMode(display=False) as flops, Operations() as operations:
        answer = work()
    return answer, float(flops.get_total_flops()), operations.total


def uncounted(work: Callable[[], T]) -> tuple[T, float, float]:
    """What `work` gives, without counters: captured or compiled work does not pass through them."""
    return work(), math.nan, math.nan


def launches(work: Callable[[], object]) -> tuple[float, float]:
    """Launches that one call makes on CUDA (a replayed graph is one), and seconds that its kernels ran."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    events = list(seen.events() or [])
    starts = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
    in_kernels = sum(event.time_range.elapsed_us() for event in events if event.device_type.name == "CUDA")
    return float(sum(event.name.startswith(starts) for event in events)), in_kernels / 1e6


def peak_memory(work: Callable[[], T], device: str) -> tuple[T, float]:
    """What `work` gives, and the most bytes held during it above those held before; NaN where that cannot be had.

    On CUDA the allocator's own peak, on Linux the peak of resident memory, set back before the call.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        answer = work()
        torch.cuda.synchronize()
        return answer, float(torch.cuda.max_memory_allocated() - before)
    before = _reset_peak()
    answer = work()
    return answer, _resident("VmHWM") - before


def _reset_peak() -> float:
    """Bytes resident after what is free was given back and the peak set to it; NaN where there is no such peak."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _CLEAR.write_text(_RESET_PEAK)
    except (OSError, AttributeError):
        return math.nan
    return _resident("VmRSS")


def _resident(field: str) -> float:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return float(lines[field].split()[0]) * 1024

"""Rows of a benchmark as a Markdown table."""

import math
from collections.abc import Iterable, Sequence
from statistics import median

from benchmarks.measure import Row

HEAD = (
    "model", "case", "by", "runs", "answers agree", "{busy} s (min to max)", "wall s", "times the first", "wanted",
    "passes", "GFLOP", "of matmul rate", "peak MiB", "{launched}",
)  # fmt: skip


def table(title: str, rows: Iterable[Row], device: str, rate: float) -> str:
    """A section: title, then one line per side of every case. `rate` is in FLOPs per busy second."""
    words = {"busy": "CPU", "launched": "operations"} if device == "cpu" else {"busy": "event", "launched": "launches"}
    head = [name.format(**words) for name in HEAD]
    lines = [head, ["---"] * len(head), *(_cells(row, rate) for row in rows)]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _cells(row: Row, rate: float) -> list[str]:
    side = row.side
    sampled = "" if side.sample is None else f", from {len(side.sample)} runs"
    agrees = f"{'yes' if row.agrees else 'NO'}, {row.error:.0e}"
    known = [row.case.model, row.case.name, side.name + sampled, f"{side.runs:,}", agrees]
    if not row.times:
        return [*known, *["not timed"] * 3, "", *[""] * 5]
    share = row.flops / row.busy / rate
    return [
        *known, spread([one.busy for one in row.times]), number(median(one.wall for one in row.times)),
        f"{row.ratio:.2f}" if row.ratio < 10 else f"{row.ratio:.1f}",
        "" if side.wanted is None else f"≥ {side.wanted:g}: {'met' if row.ratio >= side.wanted else 'NOT met'}",
        number(row.flops / row.case.one_pass), number(row.flops / 1e9), "" if math.isnan(share) else f"{share:.0%}",
        _mebibytes(row.bytes_peak),
        _launched(row),
    ]  # fmt: skip


def _launched(row: Row) -> str:
    """How many launches, and on CUDA the share of the time that kernels ran; less than half is bound by launches."""
    if math.isnan(row.launched):
        return ""
    if math.isnan(row.in_kernels):
        return f"{row.launched:,.0f}"
    share = row.in_kernels / row.busy
    return f"{row.launched:,.0f}; kernels {share:.0%}{', launch-bound' if share < 0.5 else ''}"


def spread(times: Sequence[float]) -> str:
    """Median with minimum and maximum."""
    return f"{number(median(times))} ({number(min(times))} to {number(max(times))})"


def number(value: float) -> str:
    """Three digits, without an exponent."""
    if math.isnan(value):
        return ""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _mebibytes(value: float) -> str:
    return "" if math.isnan(value) else number(value / 2**20)

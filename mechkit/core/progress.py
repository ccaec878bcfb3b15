"""Progress of long loops, reported through one hook that whoever draws it installs.

The library never prints. A long loop writes `for batch in progress(batches, "tracing"):`; outside
`showing(...)` that is plain iteration.

>>> with showing(lambda items, label, total: items):
...     sum(progress([1, 2, 3], "adding"))
6
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Bar = Callable[[Iterable, str, int | None], Iterable]
"""What draws: takes the items, a label and how many there are; yields the items."""

_bar: ContextVar[Bar | None] = ContextVar("mechkit progress bar", default=None)


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """`items`, reported to the installed bar (if any) as they are taken.

    Items with a `progress_size` count as so many of `total`.
    """
    bar = _bar.get()
    if bar is None:
        return items
    if total is None and isinstance(items, Sized):
        total = len(items)
    return bar(items, label, total)


@contextmanager
def showing(bar: Bar) -> Iterator[None]:
    """Draw every `progress` loop inside the block with `bar`."""
    token = _bar.set(bar)
    try:
        yield
    finally:
        _bar.reset(token)

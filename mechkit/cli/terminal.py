"""What every command needs: models, paths it may write to, bars."""

import gc
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 1.0
"""Seconds of work before a bar is drawn."""


def loaded(name: str, device: str | None) -> Any:
    """The model of that name, with the garbage collector at work from here on."""
    import mechkit as mk

    model = mk.load(name, device=device)
    gc.freeze()  # all that was imported stays; from here on only what the work makes is collected
    gc.enable()
    return model


def require_writable(paths: Iterable[Path]) -> None:
    """Raise OSError, before any work is done, where one of `paths` cannot be written."""
    for path in paths:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot write '{path}': there is no folder '{path.parent}'; create it first")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise PermissionError(f"cannot write '{path}'; name a folder you may write to with --out")


@contextmanager
def bars(stream) -> Iterator[None]:
    """Draw the progress of loops inside the block on `stream` once they have taken a second, if it is a terminal.

    An item with a `progress_size` counts as so many, and how many a second is drawn as well.
    """
    if not stream.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    from mechkit.core.progress import showing

    started = time.monotonic()
    columns = *Progress.get_default_columns(), TextColumn("{task.fields[speed]}")
    with Progress(*columns, console=Console(file=stream), transient=True, auto_refresh=False) as drawing:

        def bar(items: Iterable, label: str, total: int | None) -> Iterable:
            task, begun, n = drawing.add_task(label, total=total, speed=""), time.monotonic(), 0
            try:
                for item in items:
                    yield item
                    size = getattr(item, "progress_size", None)
                    n += size or 1
                    speed = "" if size is None else f"{n / (time.monotonic() - begun):,.0f}/s"
                    drawing.update(task, advance=size or 1, speed=speed)
                    if time.monotonic() - started > PATIENCE:
                        drawing.refresh()
            finally:
                drawing.remove_task(task)

        with showing(bar):
            yield

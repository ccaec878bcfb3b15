"""How a corpus is scanned: what decides the numbers of an index."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KEEP = ("examples", "all")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers but model, SAEs and corpus."""

    context: int
    """Tokens of a row, at most."""
    bos: bool
    """Whether each row of text begins with a BOS."""
    ignore: tuple[int, ...]
    """Token ids on which nothing is counted."""
    keep: str
    """"examples", or "all" activations as well."""
    top: int
    """Strongest rows kept per feature."""
    sample: int
    """Firings drawn per feature."""
    window: tuple[int, int]
    """Tokens kept before and after a firing."""
    cofiring: int
    """Tokens on which co-firing is counted, about."""
    shard: int
    """Tokens of a stretch that is written at once."""
    batch: int
    """Tokens of a forward pass, padding included."""

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise ValueError(f"keep is one of {', '.join(KEEP)}, not {self.keep!r}")
        least = {"context": 2, "top": 0, "sample": 0, "cofiring": 0, "shard": 1, "batch": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {value}")
        if min(self.window) < 0:
            raise ValueError(f"window is {self.window}; it counts tokens before and after, so neither is negative")

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def settings_for(model, saes: Mapping[str, Any], context: int | None, bos: bool | None, ignore: Any, **more: Any):
    """`Settings` with what the SAEs were trained with where nothing is said, else what the model has.

    Raises ValueError for a context that the model cannot read, and where SAEs disagree on a BOS in front of rows.
    """
    metadata = [sae.cfg.metadata for sae in saes.values()]
    widths = [one.context_size for one in metadata if one.context_size]
    width = min([*widths, int(model.cfg.n_ctx)]) if context is None else context
    if width > model.cfg.n_ctx:
        raise ValueError(f"context is {width}; this model reads at most {model.cfg.n_ctx} tokens")
    known = {bool(one.prepend_bos) for one in metadata if one.prepend_bos is not None}
    if bos is None and len(known) > 1:
        raise ValueError("some of these SAEs were trained with a BOS in front and some without; say bos=True or False")
    has = model.tokenizer is not None and model.tokenizer.bos_token_id is not None
    begins = bos if bos is not None else known.pop() if known else bool(has and model.cfg.default_prepend_bos)
    ids = _excluded(model, metadata) if ignore is None else tuple(sorted(int(token) for token in ignore))
    return Settings(context=width, bos=begins, ignore=ids, **more)


def _excluded(model, metadata: list[Any]) -> tuple[int, ...]:
    """Tokens that the SAEs were not trained on: their lists, or all of the tokenizer's special ones."""
    ids: set[int] = set()
    for one in metadata:
        excluded = one.exclude_special_tokens
        if excluded is True:
            ids |= set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
        elif excluded:
            ids |= {int(token) for token in excluded}
    return tuple(sorted(ids))

"""From sites to places in tensors: expanding `*`, checking against a model, reading and writing slices.

`expand` turns `L*.H*.z@-1` into one concrete site per layer and head; `cut` and `paste` take a site's slice out
of a hook's tensor and put a new one back, without touching the original.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import product

import torch
from torch import Tensor

from mechkit.core.prompts import Prompts
from mechkit.core.site import EACH, HEAD_NAMES, KEY_VALUE_NAMES, SQUARE_NAMES, Site, short_name

Place = int | slice | tuple[int | slice, int | slice]
"""Where a site lies along one prompt's tokens; destination and source for attention patterns."""

_D_HEAD_NAMES = frozenset({"q", "k", "v", "z", "rot_q", "rot_k"})


def expand(model, sites: "str | Site | Iterable[str | Site]", prompts: Prompts | None = None) -> list[Site]:
    """The concrete sites that `sites` stand for, `*` run through in order: layer, head, position, source, index.

    `prompts` is needed for `@*`. Raises ValueError for a site the model lacks.
    """
    given = [sites] if isinstance(sites, str | Site) else list(sites)
    return [one for site in given for one in _expand_one(model, Site.parse(site), prompts)]


def _expand_one(model, site: Site, prompts: Prompts | None) -> Iterable[Site]:
    layers = range(model.cfg.n_layers) if site.layer == EACH else [site.layer]
    for layer in layers:
        here = site.at(layer=layer)
        check_site(model, here)
        choices = {
            "head": range(n_heads(model, site.name)) if site.head == EACH else [site.head],
            "pos": _every_position(site, prompts) if site.pos == EACH else [site.pos],
            "src": _every_position(site, prompts) if site.src == EACH else [site.src],
            "index": range(_width(model, site)) if site.index == EACH else [site.index],
        }
        for parts in product(*choices.values()):
            yield here.at(**dict(zip(choices, parts, strict=True)))


def check_site(model, site: Site) -> None:
    """Raise ValueError, naming what the model does have, where `site` is not in it."""
    name, cfg = _name(model), model.cfg
    if isinstance(site.layer, int) and site.layer >= cfg.n_layers:
        raise ValueError(f"no site '{site}': {name} has layers 0 to {cfg.n_layers - 1}{_heads_text(model, site)}")
    if isinstance(site.head, int) and site.head >= n_heads(model, site.name):
        raise ValueError(f"no site '{site}': {name} has layers 0 to {cfg.n_layers - 1}{_heads_text(model, site)}")
    if site.layer != EACH and site.hook not in model.hook_dict:
        raise ValueError(f"no site '{site}': {name} has no hook '{site.hook}'; there are {_known(model, site)}")
    if isinstance(site.index, int) and site.basis is None and site.index >= _width(model, site):
        raise ValueError(f"no site '{site}': {name} has {_width(model, site)} coordinates there, from #0")


def _known(model, site: Site) -> str:
    """The names that sites of that layer (or without one) can have, the closest first."""
    block = f"blocks.{site.layer}."
    hooks = [hook for hook in model.hook_dict if hook.startswith(block if site.layer is not None else ("hook_", "ln"))]
    names = sorted({short_name(hook).rpartition("L" + block[7:])[2] for hook in hooks})
    close = get_close_matches(site.name, names, n=3)
    return ", ".join([*close, *(name for name in names if name not in close)])


def n_heads(model, name: str) -> int:
    """Number of heads of a hook: query heads, or key/value heads for k and v where the model keeps these grouped."""
    key_value = getattr(model.cfg, "n_key_value_heads", None)
    if getattr(model.cfg, "ungroup_grouped_query_attention", False):
        key_value = None
    return key_value if name in KEY_VALUE_NAMES and key_value else model.cfg.n_heads


def places(site: Site, prompts: Prompts, sources: Prompts | None = None) -> list[Place]:
    """Where `site` lies in each prompt. Raises ValueError for a position outside a prompt.

    `sources` are the prompts that source positions count in, where they are longer (a key/value cache).
    """
    if site.name not in SQUARE_NAMES:
        return [_as_place(pos) for pos in prompts.positions(site.pos)]
    ends = zip(prompts.positions(site.pos), (sources or prompts).positions(site.src), strict=True)
    return [(_as_place(dest), _as_place(src)) for dest, src in ends]


def cut(x: Tensor, site: Site, place: Place) -> Tensor:
    """The slice `[prompt, *slice]` of the hook tensor `x` at `place`, the same for all its prompts. A view."""
    return x[(slice(None), *key(site, place))]


def paste(x: Tensor, site: Site, place: Place, new: Tensor) -> Tensor:
    """A copy of `x` whose slice at `place` is `new`."""
    out = x.clone()
    out[(slice(None), *key(site, place))] = new.to(x.dtype)
    return out


def groups(found: Sequence[Place]) -> list[tuple[Place, list[int]]]:
    """Prompt numbers by place, so that prompts alike are handled together."""
    first = found[0]
    if all(place == first for place in found):
        return [(first, list(range(len(found))))]
    by_place: dict[str, tuple[Place, list[int]]] = {}
    for i, place in enumerate(found):
        by_place.setdefault(repr(place), (place, []))[1].append(i)
    return list(by_place.values())


def key(site: Site, place: Place) -> tuple:
    """The index, after the prompt axis, of the slice at `place` in the hook's tensor."""
    whole = slice(None)
    if site.basis is not None:
        raise ValueError(f"site '{site}' is in the basis '{site.basis}'; hooks hold only the model's own coordinates")
    if site.name in SQUARE_NAMES:
        dest, src = place if isinstance(place, tuple) else (place, whole)
        return (whole if site.head is None else _int(site.head), dest, src)
    if isinstance(place, tuple):
        raise ValueError(f"site '{site}' has no source position")
    head = () if site.name not in HEAD_NAMES else (whole if site.head is None else _int(site.head),)
    return (place, *head) if site.index is None else (place, *head, ..., _int(site.index))


def _int(value: int | str) -> int:
    if isinstance(value, str):
        raise ValueError("a site with '*' stands for many; expand it first")
    return value


def _as_place(pos: int | list[int]) -> int | slice:
    return pos if isinstance(pos, int) else slice(pos[0], pos[-1] + 1)


def _every_position(site: Site, prompts: Prompts | None) -> range:
    if prompts is None:
        raise ValueError(f"site '{site}' runs over positions; give the prompts they belong to")
    lengths = set(prompts.lengths)
    if len(lengths) > 1:
        raise ValueError(f"site '{site}' runs over positions, and the prompts have {sorted(lengths)} tokens; use spans")
    return range(lengths.pop())


def _width(model, site: Site) -> int:
    if site.basis is not None:
        raise ValueError(f"site '{site}' runs over the dictionary '{site.basis}'; list the features you mean")
    if site.name.endswith(".scale"):
        return 1
    if site.name.startswith("mlp_") and site.name not in ("mlp_out", "mlp_in"):
        return model.cfg.d_mlp
    return model.cfg.d_head if site.name in _D_HEAD_NAMES else model.cfg.d_model


def _name(model) -> str:
    name = getattr(model.cfg, "model_name", None)
    return name if name and name != "custom" else "the model"


def _heads_text(model, site: Site) -> str:
    return f" and heads 0 to {n_heads(model, site.name) - 1}" if site.name in HEAD_NAMES else ""


def same_device(values: Tensor, like: Tensor) -> Tensor:
    """`values` in the dtype and on the device of `like`."""
    return values.to(device=like.device, dtype=like.dtype) if isinstance(values, Tensor) else torch.as_tensor(values)

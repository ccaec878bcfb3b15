"""The other sides: `transformer_lens.patching`, plain loops of hooked passes, and the usual gradient recipe.

None is handicapped: no gradients are recorded where none are needed, values to patch in are cached before the clock
starts, and hooks edit as their libraries do. Part of a sweep can be run, where all of it would take minutes: every run
costs a peer the same.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import mechkit as mk
from mechkit.core.site import Site

Cell = tuple[str, tuple[int, ...]]
"""What is patched, by TransformerLens's name, and where: layer and position, head, or both."""

AXES = {
    "resid_pre": "lp", "attn_out": "lp", "mlp_out": "lp", "attn_head_out_all_pos": "lh", "attn_head_out_by_pos": "lph",
    "attn_head_q_all_pos": "lh",
}  # fmt: skip
"""Axes of each function's answer: layer, position, head."""
BLOCK_EVERY = ("resid_pre", "attn_out", "mlp_out")
"""Kinds that `get_act_patch_block_every` answers at once."""
COLUMNS = {"l": "layer", "p": "pos", "h": "head"}


@dataclass(frozen=True)
class Sweep:
    """Runs that patch every cell of some kinds, in the order of TransformerLens's answers."""

    model: Any
    pair: mk.Pair
    kinds: tuple[str, ...]
    positions: tuple[int, ...] | None = None
    """Positions that are patched one by one; None for every one."""

    @cached_property
    def cache(self):
        """TransformerLens's cache of the clean run, every name."""
        return self.model.run_with_cache(self.pair.clean.tokens)[1]

    def metric(self, logits: Tensor) -> Tensor:
        """Logit difference at the last token, as one number: what these functions take."""
        answer, wrong = int(self.pair.clean.answers[0, 0]), int(self.pair.clean.wrong[0, 0])
        return logits[0, -1, answer] - logits[0, -1, wrong]

    def cells(self) -> list[Cell]:
        """Every run."""
        cfg = self.model.cfg
        positions = self.positions or range(self.pair.clean.tokens.shape[1])
        along = {"l": range(cfg.n_layers), "p": positions, "h": range(cfg.n_heads)}
        return [(kind, place) for kind in self.kinds for place in product(*(along[axis] for axis in AXES[kind]))]

    def by_transformer_lens(self, cells: Sequence[Cell]) -> Tensor:
        """The chosen cells by the library's own functions; one call per kind."""
        from transformer_lens import patching

        with quiet():
            return self._by_functions(patching, cells)

    def _by_functions(self, module, cells: Sequence[Cell]) -> Tensor:
        """The chosen cells by a module's `get_act_patch_` functions; one call per kind."""
        arguments = (self.model, self.pair.corrupt.tokens, self.cache, self.metric)
        found = []
        for kind in self.kinds:
            places = [place for name, place in cells if name == kind]
            if places:
                table = pd.DataFrame(places, columns=["layer", *(COLUMNS[axis] for axis in AXES[kind][1:])])
                patch = getattr(module, f"get_act_patch_{kind}")
                found.append(patch(*arguments, index_axis_names=None, index_df=table))
        return torch.cat(found)

    def by_loop(self, cells: Sequence[Cell]) -> Tensor:
        """The chosen cells by a loop of `run_with_hooks`."""
        found = []
        for kind, place in cells:
            name, key = hook_of(kind, place)

            def replace(x: Tensor, hook, key=key) -> Tensor:
                x = x.clone()
                x[key] = self.cache[hook.name][key]
                return x

            logits = self.model.run_with_hooks(self.pair.corrupt.tokens, fwd_hooks=[(name, replace)])
            found.append(self.metric(logits))
        return torch.stack(found)

    def by_compat(self) -> Tensor:
        """Every run by mechkit's drop-ins, called as the library's own functions are."""
        from mechkit.patching import compat

        if self.positions is not None:
            return self._by_functions(compat, self.cells())
        arguments = (self.model, self.pair.corrupt.tokens, self.cache, self.metric)
        if self.kinds == BLOCK_EVERY:
            return compat.get_act_patch_block_every(*arguments)
        return torch.cat([getattr(compat, f"get_act_patch_{kind}")(*arguments).flatten() for kind in self.kinds])

    def by_patch(self) -> Tensor:
        """Every run by `mk.patch`, whose scores are changes from the corrupt prompt."""
        found = mk.patch(self.model, self.pair, self.sites(), mk.logit_diff)
        return found.scores[:, 0] + self.start

    @cached_property
    def start(self) -> float:
        """The metric on the corrupt prompt."""
        return float(self.metric(self.model(self.pair.corrupt.tokens)))

    def sites(self) -> list[Site]:
        """Every run as a site."""
        return [site_of(kind, place) for kind, place in self.cells()]


def hook_of(kind: str, place: Sequence[int]) -> tuple[str, tuple]:
    """Hook name of a cell, and the index of its slice."""
    site = site_of(kind, place)
    whole = slice(None)
    head = () if site.head is None else (site.head,)
    return site.hook, (whole, whole if site.pos is None else site.pos, *head)


def site_of(kind: str, place: Sequence[int]) -> Site:
    """The cell as mechkit's site."""
    at = dict(zip(AXES[kind], place, strict=True))
    name = {"attn_head_out_all_pos": "z", "attn_head_out_by_pos": "z", "attn_head_q_all_pos": "q"}.get(kind, kind)
    return Site(name, layer=at["l"], head=at.get("h"), pos=at.get("p"))


@dataclass(frozen=True)
class Paths:
    """Path patching from every head to receivers, by two passes per sender."""

    model: Any
    pair: mk.Pair
    receivers: Sequence[Site]

    @cached_property
    def heads(self) -> tuple[Any, Any]:
        """Caches of every head's output on the clean and on the corrupt prompt."""
        sides = (self.pair.clean.tokens, self.pair.corrupt.tokens)
        clean, corrupt = (self.model.run_with_cache(tokens, names_filter=_is_z)[1] for tokens in sides)
        return clean, corrupt

    @cached_property
    def start(self) -> float:
        """The metric on the clean prompt."""
        return float(Sweep(self.model, self.pair, ()).metric(self.model(self.pair.clean.tokens)))

    def senders(self) -> list[Site]:
        """Every head, all positions."""
        cfg = self.model.cfg
        return [Site("z", layer=layer, head=head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]

    def by_loop(self, senders: Sequence[Site]) -> Tensor:
        """The metric on the clean prompt when what each sender sends on the corrupt one reaches the receivers alone."""
        sweep = Sweep(self.model, self.pair, ())
        clean, corrupt = self.heads
        found = []
        for sender in senders:

            def hold(x: Tensor, hook, sender=sender) -> Tensor:
                x = clean[hook.name].clone()
                if hook.name == sender.hook:
                    x[:, :, int(sender.head or 0)] = corrupt[hook.name][:, :, int(sender.head or 0)]
                return x

            received: dict[str, Tensor] = {}
            reading = [
                (name, lambda x, hook, received=received: received.__setitem__(hook.name, x.clone()))
                for name in {site.hook for site in self.receivers}
            ]
            self.model.run_with_hooks(self.pair.clean.tokens, fwd_hooks=[(_is_z, hold), *reading])
            arriving = [(site.hook, self._arrive(int(site.head or 0), received)) for site in self.receivers]
            found.append(sweep.metric(self.model.run_with_hooks(self.pair.clean.tokens, fwd_hooks=arriving)))
        return torch.stack(found)

    @staticmethod
    def _arrive(head: int, received: dict[str, Tensor]) -> Callable:
        def hook(x: Tensor, hook) -> Tensor:
            x = x.clone()
            x[:, :, head] = received[hook.name][:, :, head]
            return x

        return hook


def _is_z(name: str) -> bool:
    return name.endswith("hook_z")


def attribution_by_backward(sweep: Sweep) -> Tensor:
    """Attribution patching of every cell by the usual recipe: `value.backward()` with caching hooks both ways."""
    model = sweep.model
    names = sorted({site.hook for site in sweep.sites()})
    _, clean = model.run_with_cache(sweep.pair.clean.tokens, names_filter=names)
    values, slopes = {}, {}
    forward = [(name, lambda x, hook: values.__setitem__(hook.name, x.detach())) for name in names]
    backward = [(name, lambda x, hook: slopes.__setitem__(hook.name, x)) for name in names]
    model.zero_grad(set_to_none=True)
    with torch.enable_grad(), model.hooks(forward, backward):
        sweep.metric(model(sweep.pair.corrupt.tokens)).backward()
    return torch.cat([_contracted(sweep, kind, clean, values, slopes) for kind in sweep.kinds])


def _contracted(sweep: Sweep, kind: str, clean, values: dict[str, Tensor], slopes: dict[str, Tensor]) -> Tensor:
    """Change times slope of every cell of one kind, summed over its slice: one product per layer."""
    found = []
    for layer in range(sweep.model.cfg.n_layers):
        name = site_of(kind, [layer] + [0] * (len(AXES[kind]) - 1)).hook
        product = ((clean[name] - values[name]) * slopes[name])[0].sum(-1)
        if "p" not in AXES[kind]:
            product = product.sum(0)
        elif sweep.positions is not None:
            product = product[list(sweep.positions)]
        found.append(product.flatten())
    return torch.cat(found)


def spaced(n: int, wanted: int) -> list[int]:
    """`wanted` numbers of 0 to n - 1, evenly spaced, or all of them."""
    return list(range(n)) if wanted >= n else sorted({round(i * (n - 1) / (wanted - 1)) for i in range(wanted)})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars on stderr inside the block."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield

"""Interventions: a site and a pure function of that site's slice.

Each one sees only its own slice `x[prompt, *slice]` and returns a new tensor; nothing is edited in place.

    edit = Add("L0.mlp_out@-1", vector)
    with model.hooks(fwd_hooks=edit.hooks(model)):     # plain TransformerLens hooks
        model(tokens)
    sweep(model, prompts, [[edit], [Zero("L1.H3.z")]], logit_diff)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.places import Place, check_site, cut, groups, paste, places, same_device
from mechkit.core.prompts import Prompts
from mechkit.core.site import SQUARE_NAMES, Site

Hook = tuple[str, Callable]
"""TransformerLens's hook: full name and `f(activation, hook)`."""

Slice = Float[Tensor, "prompt *slice"]


@dataclass(frozen=True, eq=False)
class Intervention(ABC):
    """An edit of one site. Subclasses say what becomes of its slice."""

    site: Any
    """Where it acts: a `Site`, or the text of one, which is read into a `Site`."""

    by_position: ClassVar[bool] = False
    """Whether what becomes of a position depends on that position alone; True lets a sweep leave out others."""

    replaces: ClassVar[bool] = False
    """Whether a `value` of the slice's shape is put in whatever the slice holds, so that many are made at once; not
    inherited."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.parse(self.site))
        if not self.site.is_concrete:
            raise ValueError(f"an intervention acts on one place; '{self.site}' stands for many: expand it first")

    @abstractmethod
    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        """The new slice. `prompts` numbers the prompts in `x`, `place` says where along them it lies."""

    def hooks(self, model, prompts: Prompts | None = None) -> list[Hook]:
        """Plain TransformerLens forward hooks for `model.hooks` and `generate`.

        Without `prompts`, every prompt is taken to fill its row, and spans are unknown. In `generate` with its
        key/value cache the row of a later step is the new token alone, which both `@-1` and no position name.
        Raises ValueError where the model lacks the site.
        """
        check_site(model, self.site)
        return [
            (
                self.site.hook,
                lambda x, hook: self.apply(x, prompts or _unpadded(x, 2 if self.site.name in SQUARE_NAMES else 1)),
            )
        ]

    def apply(self, x: Tensor, prompts: Prompts, numbers: Sequence[int] | None = None) -> Tensor:
        """A copy of the hook tensor `x` with this edit made in every prompt; `numbers` are the prompts' own."""
        numbers = list(range(len(prompts))) if numbers is None else list(numbers)
        cached = self.site.name in SQUARE_NAMES and x.shape[3] > x.shape[2]
        for place, rows in groups(places(self.site, prompts, _unpadded(x, 3) if cached else None)):
            part = x if len(rows) == len(prompts) else x[rows]
            new = self.edit(cut(part, self.site, place), [numbers[i] for i in rows], place)
            part = paste(part, self.site, place, new)
            x = part if len(rows) == len(prompts) else x.index_copy(0, torch.tensor(rows, device=x.device), part)
        return x


def _unpadded(x: Tensor, axis: int) -> Prompts:
    """Prompts that each fill their row of `x`, whose positions lie on `axis`."""
    mask = torch.ones(x.shape[0], x.shape[axis], dtype=torch.bool)
    return Prompts(torch.zeros_like(mask, dtype=torch.long), mask)


def _for_prompts(site: Site, value: Tensor | float, x: Slice, prompts: list[int]) -> Tensor:
    """`value`, shared by all prompts or with one entry per prompt, shaped to go with `x`."""
    value = same_device(torch.as_tensor(value), x)
    if value.ndim == x.ndim and value.shape[0] > 1:
        if max(prompts) >= value.shape[0]:
            raise ValueError(f"value for '{site}' has {value.shape[0]} prompts, and prompt {max(prompts)} needs one")
        value = value[prompts]
    fits = value.ndim <= x.ndim and all(
        ours in (1, size) for ours, size in zip(reversed(value.shape), reversed(x.shape), strict=False)
    )
    if not fits:
        raise ValueError(f"value of shape {list(value.shape)} does not fit '{site}', whose slice is {list(x.shape)}")
    return value


@dataclass(frozen=True, eq=False)
class Replace(Intervention):
    """Put `value` in place of the slice: `[*slice]` for every prompt, or `[prompt, *slice]`."""

    by_position: ClassVar[bool] = True
    replaces: ClassVar[bool] = True

    value: Tensor | float
    """What comes in, broadcast to the slice."""

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        return _for_prompts(self.site, self.value, x, prompts).expand_as(x)


@dataclass(frozen=True, eq=False)
class Zero(Intervention):
    """Put zeros in place of the slice."""

    by_position: ClassVar[bool] = True

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        return torch.zeros_like(x)


@dataclass(frozen=True, eq=False)
class Add(Intervention):
    """Add `value` to the slice: `[*slice]` for every prompt, or `[prompt, *slice]`."""

    by_position: ClassVar[bool] = True

    value: Tensor | float
    """What is added, broadcast to the slice."""

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        return x + _for_prompts(self.site, self.value, x, prompts)


@dataclass(frozen=True, eq=False)
class Scale(Intervention):
    """Multiply the slice by `factor`; 0 ablates, 1 does nothing, -1 flips."""

    by_position: ClassVar[bool] = True

    factor: float
    """What the slice is multiplied by."""

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        return x * self.factor


@dataclass(frozen=True, eq=False)
class Mean(Intervention):
    """Put the mean of `reference[prompt, *slice]`, activations of this site on other prompts, in its place.

    `by="position"` keeps positions apart, `by="all"` takes one mean over prompts and positions. A pair of label
    sequences, `(of_reference, of_prompts)`, gives each prompt the mean of the reference prompts with its label
    (its template, say). Raises ValueError for a label without a reference prompt.
    """

    by_position: ClassVar[bool] = True

    reference: Float[Tensor, "reference *slice"]
    """The site's slice on the reference prompts."""
    by: Literal["position", "all"] | tuple[Sequence[Hashable], Sequence[Hashable]] = "position"
    """What is averaged over."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.by, str) and self.by not in ("position", "all"):
            raise ValueError(f"a mean is by 'position', 'all' or two sequences of labels, not by {self.by!r}")
        if not isinstance(self.by, str) and len(self.by[0]) != len(self.reference):
            raise ValueError(f"{len(self.by[0])} labels for {len(self.reference)} reference prompts; give one each")

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        reference = same_device(self.reference, x)
        if self.by == "all" and isinstance(place, slice):
            return reference.mean((0, 1), keepdim=True).expand_as(x)
        if isinstance(self.by, str):
            return reference.mean(0, keepdim=True).expand_as(x)
        return torch.stack([reference[self._alike(prompt)].mean(0) for prompt in prompts])

    def _alike(self, prompt: int) -> list[int]:
        of_reference, of_prompts = self.by
        rows = [i for i, label in enumerate(of_reference) if label == of_prompts[prompt]]
        if not rows:
            raise ValueError(f"no reference prompt has the label {of_prompts[prompt]!r} of prompt {prompt}")
        return rows


@dataclass(frozen=True, eq=False)
class Noise(Intervention):
    """Add Gaussian noise of standard deviation `std`, keyed by (seed, sample, prompt, position).

    The same key gives the same noise, whatever else is in the batch.
    """

    by_position: ClassVar[bool] = True

    std: float
    """Standard deviation, in the units of the activation."""
    seed: int = 0
    """First part of the key."""
    sample: int = 0
    """Number of the draw, for averaging over several."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.site.name in SQUARE_NAMES:
            raise ValueError(f"noise on '{self.site}' would leave rows that are not probabilities; add it to z instead")

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        noise = torch.stack([self._noise(x.shape[1:], prompt, place) for prompt in prompts])
        return x + self.std * same_device(noise, x)

    def _noise(self, shape: torch.Size, prompt: int, place: Place) -> Tensor:
        if isinstance(place, int):
            return self._draw(shape, prompt, place)
        positions = range(place.start, place.stop) if isinstance(place, slice) else []
        return torch.stack([self._draw(shape[1:], prompt, pos) for pos in positions])

    def _draw(self, shape: torch.Size, prompt: int, pos: int) -> Tensor:
        key = 0
        for part in (self.seed, self.sample, prompt, pos):
            key = (key * 1_000_003 + part + 0x9E3779B9) % (1 << 62)
        return torch.randn(shape, generator=torch.Generator().manual_seed(key))


@dataclass(frozen=True, eq=False)
class ProjectOut(Intervention):
    """Remove the part of the slice that lies in the span of `directions`, `[direction, d]` or one `[d]`."""

    by_position: ClassVar[bool] = True

    directions: Float[Tensor, "*direction d"]
    """Need not be orthogonal, independent or of unit length."""

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        directions = torch.atleast_2d(self.directions).to(torch.float64)
        if x.ndim < 2 or x.shape[-1] != directions.shape[-1]:
            raise ValueError(f"directions of {directions.shape[-1]} do not fit '{self.site}': slice {list(x.shape)}")
        _, sizes, axes = torch.linalg.svd(directions, full_matrices=False)
        independent = sizes > sizes.max() * max(directions.shape) * torch.finfo(self.directions.dtype).eps
        basis = axes[independent].T.to(device=x.device, dtype=x.dtype)
        return x - (x @ basis) @ basis.T

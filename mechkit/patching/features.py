"""Features of a dictionary as places to patch: `L8.resid_pre[sae]#4812` with `dictionaries={"sae": sae}`.

A dictionary is whatever encodes and has decoder rows: `encode(x)` (SAELens) or `activations(x)` (`Transcoder`), and
`W_dec[feature, d]`. Giving a feature another activation moves `x` by the difference times the feature's decoder row,
so what the dictionary leaves out of `x`, its error, stays. A transcoder reads one hook and writes another; its
features are named at the hook they write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Intervention, Slice
from mechkit.core.places import Place, same_device
from mechkit.core.site import Site, short_name

_FIXED_SCALES = (None, "none", "expected_average_only_in")
"""Settings of SAELens under which a decoder row means the same on every input."""


@dataclass(frozen=True, eq=False)
class SetFeatures(Intervention):
    """Give features of a dictionary these activations, whatever earlier edits made of `x`."""

    by_position: ClassVar[bool] = True

    dictionary: Any
    """What encodes, with decoder rows `W_dec`."""
    indices: Sequence[int] | slice
    """The features."""
    value: Float[Tensor, "prompt *pos feature"]
    """Their new activations; a single prompt's serve all."""

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        new = self.value if len(self.value) == 1 else self.value[prompts]
        old = encode(self.dictionary, x)[..., self.indices]
        return x + written(self.dictionary, self.indices, same_device(new, old) - old, x)


def encode(dictionary, x: Tensor) -> Tensor:
    """How active each feature is on the hook's slice `x`. Raises ValueError where its width is another."""
    d_in = (dictionary.W_dec if not hasattr(dictionary, "W_enc") else dictionary.W_enc.T).shape[1]
    if d_in not in (x.shape[-1], x.shape[-2:].numel()):
        raise ValueError(f"a dictionary of width {d_in} does not fit activations of {list(x.shape)}")
    function = dictionary.encode if hasattr(dictionary, "encode") else dictionary.activations
    return function(x.to(dictionary.W_dec.dtype))


def written(dictionary, indices: Sequence[int] | slice, change: Tensor, like: Tensor) -> Tensor:
    """What a change of these features' activations adds to the slice `like`."""
    return (change @ dictionary.W_dec[indices]).reshape(like.shape).to(like.dtype)


def dictionary_of(dictionaries: Mapping[str, Any], site: Site):
    """The dictionary that `site` counts in. Raises ValueError for one that was not given or does not fit."""
    if site.basis is None or site.basis not in dictionaries:
        known = ", ".join(sorted(dictionaries)) or "none"
        raise ValueError(f"site '{site}' is in the dictionary '{site.basis}'; given are {known}: dictionaries={{...}}")
    dictionary = dictionaries[site.basis]
    n_features = dictionary.W_dec.shape[0]
    if isinstance(site.index, int) and site.index >= n_features:
        raise ValueError(f"no site '{site}': the dictionary has features #0 to #{n_features - 1}")
    scaling = getattr(getattr(dictionary, "cfg", None), "normalize_activations", None)
    if scaling not in _FIXED_SCALES:
        raise ValueError(
            f"dictionary '{site.basis}' rescales each input ({scaling}): its decoder rows have no fixed size"
        )
    return dictionary


def source_hook(model, dictionary, site: Site) -> Site:
    """Where the activation of the feature at `site` is read: there, or at a transcoder's input.

    Raises ValueError where the dictionary names a hook that is not the site's or not the model's.
    """
    hook_in, hook_out = _hooks(dictionary)
    if hook_out is not None and hook_out in model.hook_dict and hook_out != site.hook:
        text = short_name(hook_out)
        raise ValueError(
            f"dictionary '{site.basis}' is of '{text}', not of site '{site}'; write '{text}[{site.basis}]'"
        )
    if hook_in is None or hook_in == hook_out:
        return site.at(basis=None, index=None)
    if hook_in not in model.hook_dict:
        raise ValueError(f"dictionary '{site.basis}' reads '{hook_in}', and the model has no such hook")
    return Site.parse(short_name(hook_in)).at(pos=site.pos)


def _hooks(dictionary) -> tuple[str | None, str | None]:
    """The hooks a dictionary says it reads and writes, where it does."""
    if hasattr(dictionary, "hook_in"):
        return dictionary.hook_in, dictionary.hook_out
    about = getattr(getattr(dictionary, "cfg", None), "metadata", None)
    hook = getattr(about, "hook_name", None)
    return hook, getattr(about, "hook_name_out", None) or hook

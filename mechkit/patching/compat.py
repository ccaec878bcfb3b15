"""Drop-in functions for `transformer_lens.patching`: its names, arguments and shapes, on the sweep engine.

    from mechkit.patching import compat as patching
    patching.get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, metric)      # [layer, pos]

Each answer holds the metric after each patch (not its change), in float32 on the model's device. The cache given
decides the values, hence what is a no-op. `patching_metric` is a function of the whole batch's logits that gives one
number, called once per run. A patch setter of one's own gets the hook's whole tensor, in one hooked pass per run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Intervention, Replace, Slice
from mechkit.core.loop import loop
from mechkit.core.metrics import Metric
from mechkit.core.places import Place, check_site, n_heads
from mechkit.core.prompts import Prompts
from mechkit.core.site import HEAD_NAMES, SQUARE_NAMES, Site
from mechkit.core.sweep import sweep

_NAMES = {"attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v"}
"""TransformerLens's other words for a hook."""


@dataclass(frozen=True)
class Setter:
    """A patch setter: a copy of the corrupted activation with the clean one's values at an index."""

    parts: tuple[str, ...]
    """What the entries of an index count, in order: layer, head, pos, src."""
    square: bool = False
    """Whether the activations are attention patterns, `[batch, head, dest, src]`; else `[batch, pos, head, ...]`."""

    def __call__(self, corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
        where = self.where(index)
        patched = corrupted_activation.clone()
        patched[where] = clean_activation[where].to(patched)
        return patched

    def where(self, index: Sequence[int]) -> tuple[int | slice, ...]:
        """The place in the activation, as tensors are indexed."""
        at = dict(zip(self.parts, index, strict=True))
        axes = ("head", "pos", "src") if self.square else ("pos", "head")
        last = max(axes.index(part) for part in self.parts[1:])
        return (slice(None), *(at.get(axis, slice(None)) for axis in axes[: last + 1]))

    def site(self, name: str, index: Sequence[int]) -> Site | None:
        """The site that takes the value, or None where an index means something else to that hook."""
        if (name in SQUARE_NAMES) is not self.square or ("head" in self.parts and name not in HEAD_NAMES):
            return None
        layer, *rest = map(int, index)
        return Site(name, layer).at(**dict(zip(self.parts[1:], rest, strict=True)))


layer_pos_patch_setter = Setter(("layer", "pos"))
layer_pos_head_vector_patch_setter = Setter(("layer", "pos", "head"))
layer_head_vector_patch_setter = Setter(("layer", "head"))
layer_head_pattern_patch_setter = Setter(("layer", "head"), square=True)
layer_head_pos_pattern_patch_setter = Setter(("layer", "head", "pos"), square=True)
layer_head_dest_src_pos_pattern_patch_setter = Setter(("layer", "head", "pos", "src"), square=True)


@dataclass(frozen=True, eq=False)
class SetWhole(Intervention):
    """A patch setter of the caller's own, on the hook's whole tensor."""

    setter: Callable
    """`f(corrupted_activation, index, clean_activation)`; None back means it wrote into what it was given."""
    index: Sequence
    """The row of indices it is called with."""
    clean: Tensor
    """The cached activation of the hook."""

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        mine = x.clone()
        patched = self.setter(mine, self.index, self.clean)
        return mine if patched is None else patched


def generic_activation_patch(
    model,
    corrupted_tokens: Tensor,
    clean_cache: Mapping[str, Tensor] | Any,
    patching_metric: Callable[[Tensor], Any],
    patch_setter: Callable,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    return_index_df: bool = False,
) -> Tensor | tuple[Tensor, pd.DataFrame]:
    """The metric after each patch, one axis per index axis, or one entry per row of `index_df`.

    `index_axis_names` run over layer, pos, head (or head_index), dest_pos and src_pos; the first index is the layer.
    With `return_index_df` the table of indices comes second, as in TransformerLens.

    Unit: the metric's. Cost: one run per index, and the base run. Raises ValueError unless exactly one of
    `index_axis_names` and `index_df` is given, and where the metric is not one number.
    """
    if (index_axis_names is None) is (index_df is None):
        raise ValueError("give either index_axis_names or index_df: which indices to patch")
    shape = [-1]
    if index_df is None:
        names = list(index_axis_names or ())
        shape = _sizes(model, corrupted_tokens, activation_name, names)
        index_df = make_df_from_ranges(shape, names)
    edits = _edits(clean_cache, patch_setter, activation_name, index_df)
    scores = _measure(model, corrupted_tokens, edits, patching_metric).reshape(shape)
    return (scores, index_df) if return_index_df else scores


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> pd.DataFrame:
    """A table of every combination of indices below the given numbers, the last column running fastest."""
    return pd.DataFrame(list(product(*map(range, column_max_ranges))), columns=list(column_names))


def _sizes(model, tokens: Tensor, activation_name: str, names: Sequence[str]) -> list[int]:
    heads = n_heads(model, _NAMES.get(activation_name, activation_name))
    sizes = {"layer": model.cfg.n_layers, "head": heads, "head_index": heads}
    sizes |= dict.fromkeys(("pos", "src_pos", "dest_pos"), tokens.shape[-1])
    unknown = [name for name in names if name not in sizes]
    if unknown:
        raise ValueError(f"no axis '{unknown[0]}'; there are {', '.join(sizes)}")
    return [sizes[name] for name in names]


def _edits(cache: Any, setter: Callable, activation_name: str, indices: pd.DataFrame) -> list[Intervention]:
    name = _NAMES.get(activation_name, activation_name)
    known = _known(setter)
    return [_edit(cache, setter, known, name, index) for index in indices.to_numpy().tolist()]


def _known(setter: Callable) -> Setter | None:
    """The setter of ours that does what `setter` does: itself, or TransformerLens's of the same name."""
    if getattr(setter, "__module__", "") == "transformer_lens.patching":
        setter = globals().get(setter.__name__, setter)
    return setter if isinstance(setter, Setter) else None


def _edit(cache: Any, setter: Callable, known: Setter | None, name: str, index: Sequence) -> Intervention:
    whole = Site(name, int(index[0]))
    clean = cache[whole.hook]
    site = None if known is None else known.site(name, index)
    if known is None or site is None:
        return SetWhole(whole, setter, index, clean)
    return Replace(site, clean[known.where(index)])


def _measure(
    model, tokens: Tensor, edits: Sequence[Intervention], patching_metric: Callable[[Tensor], Any]
) -> Float[Tensor, "run"]:
    """The metric after each edit. Setters of the caller's own see every prompt at once, as in a plain loop."""
    prompts = Prompts.from_tokens(tokens)
    for edit in edits:
        check_site(model, edit.site)
        _require_batch(edit, len(prompts))
    runs, metric = [[edit] for edit in edits], _whole_batch(patching_metric)
    if any(isinstance(edit, SetWhole) for edit in edits):
        scores = loop(model, prompts, runs, [metric], (), ())[0][:, 0, 0]
    else:
        scores = sweep(model, prompts, runs, metric).scores[:, 0]
    return scores.to(device=model.cfg.device, dtype=torch.float32)


def _require_batch(edit: Intervention, n_prompts: int) -> None:
    if isinstance(edit, Replace) and isinstance(edit.value, Tensor) and edit.value.shape[0] not in (1, n_prompts):
        raise ValueError(f"the cache holds {edit.value.shape[0]} prompts, the corrupted tokens {n_prompts}")


def _whole_batch(patching_metric: Callable[[Tensor], Any]) -> Metric:
    """A function of the whole batch that gives one number, as a metric that has it on every prompt."""

    def compute(logits: Tensor, prompts: Prompts) -> Tensor:
        value = torch.as_tensor(patching_metric(logits), device=logits.device)
        if value.numel() != 1:
            raise ValueError(f"patching_metric gave {list(value.shape)}; it must give one number for the whole batch")
        return value.reshape(1).expand(len(prompts))

    return Metric(getattr(patching_metric, "__name__", "patching_metric"), "metric", "unknown", compute)


def _patches(activation_name: str, setter: Setter, *axes: str) -> partial:
    """`generic_activation_patch` for one hook: `f(model, corrupted_tokens, clean_cache, patching_metric)`."""
    fixed = {"patch_setter": setter, "activation_name": activation_name, "index_axis_names": axes}
    return partial(generic_activation_patch, **fixed)


get_act_patch_resid_pre = _patches("resid_pre", layer_pos_patch_setter, "layer", "pos")
get_act_patch_resid_mid = _patches("resid_mid", layer_pos_patch_setter, "layer", "pos")
get_act_patch_attn_out = _patches("attn_out", layer_pos_patch_setter, "layer", "pos")
get_act_patch_mlp_out = _patches("mlp_out", layer_pos_patch_setter, "layer", "pos")

_BY_POS = (layer_pos_head_vector_patch_setter, "layer", "pos", "head")
get_act_patch_attn_head_out_by_pos = _patches("z", *_BY_POS)
get_act_patch_attn_head_q_by_pos = _patches("q", *_BY_POS)
get_act_patch_attn_head_k_by_pos = _patches("k", *_BY_POS)
get_act_patch_attn_head_v_by_pos = _patches("v", *_BY_POS)
get_act_patch_attn_head_pattern_by_pos = _patches(
    "pattern", layer_head_pos_pattern_patch_setter, "layer", "head_index", "dest_pos"
)
get_act_patch_attn_head_pattern_dest_src_pos = _patches(
    "pattern", layer_head_dest_src_pos_pattern_patch_setter, "layer", "head_index", "dest_pos", "src_pos"
)

_ALL_POS = (layer_head_vector_patch_setter, "layer", "head")
get_act_patch_attn_head_out_all_pos = _patches("z", *_ALL_POS)
get_act_patch_attn_head_q_all_pos = _patches("q", *_ALL_POS)
get_act_patch_attn_head_k_all_pos = _patches("k", *_ALL_POS)
get_act_patch_attn_head_v_all_pos = _patches("v", *_ALL_POS)
get_act_patch_attn_head_pattern_all_pos = _patches("pattern", layer_head_pattern_patch_setter, "layer", "head_index")


def get_act_patch_block_every(model, corrupted_tokens, clean_cache, metric) -> Float[Tensor, "3 layer pos"]:
    """The metric after patching resid_pre, attn_out and mlp_out at every layer and position, in one sweep."""
    kinds = [get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out]
    return torch.stack(_every(kinds, model, corrupted_tokens, clean_cache, metric))


def get_act_patch_attn_head_all_pos_every(
    model, corrupted_tokens, clean_cache, metric
) -> Float[Tensor, "5 layer head"]:
    """The metric after patching each head's z, q, k, v and pattern at all positions, in one sweep.

    With fewer key/value heads than heads, k and v have zeros on the right, as in TransformerLens.
    """
    kinds = [
        get_act_patch_attn_head_out_all_pos,
        get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos,
        get_act_patch_attn_head_pattern_all_pos,
    ]
    return torch.stack(_padded(_every(kinds, model, corrupted_tokens, clean_cache, metric)))


def get_act_patch_attn_head_by_pos_every(
    model, corrupted_tokens, clean_cache, metric
) -> Float[Tensor, "5 layer pos head"]:
    """The metric after patching each head's z, q, k, v and pattern at each position, in one sweep.

    With fewer key/value heads than heads, k and v have zeros on the right, as in TransformerLens.
    """
    kinds = [
        get_act_patch_attn_head_out_by_pos,
        get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos,
        get_act_patch_attn_head_pattern_by_pos,
    ]
    *vectors, pattern = _every(kinds, model, corrupted_tokens, clean_cache, metric)
    return torch.stack(_padded([*vectors, pattern.transpose(1, 2)]))


def _every(kinds: Sequence[partial], model, tokens: Tensor, cache: Any, metric: Callable) -> list[Tensor]:
    """The answers of several functions, whose runs share one sweep."""
    shapes, edits = [], []
    for kind in kinds:
        setter, name, axes = (kind.keywords[key] for key in ("patch_setter", "activation_name", "index_axis_names"))
        shapes.append(_sizes(model, tokens, name, axes))
        edits.append(_edits(cache, setter, name, make_df_from_ranges(shapes[-1], axes)))
    scores = _measure(model, tokens, [edit for some in edits for edit in some], metric)
    parts = scores.split([len(some) for some in edits])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _padded(answers: Sequence[Tensor]) -> list[Tensor]:
    widest = max(answer.shape[-1] for answer in answers)
    return [torch.nn.functional.pad(answer, (0, widest - answer.shape[-1])) for answer in answers]

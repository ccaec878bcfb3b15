"""The edits that give sites their new values, one list per row."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mechkit.core.interventions import Add, Intervention, Replace, Zero
from mechkit.core.site import HEAD_NAMES, Site
from mechkit.patching.features import SetFeatures, source_hook
from mechkit.patching.rows import Row
from mechkit.patching.values import Reader, Value, edit_with, map_values

Values = Mapping[Site, Value]


def row_edits(reader: Reader, row: Row, values: Values | None, current: Values) -> list[Intervention]:
    """The edits that give every site of a row its value, or zero without values.

    `current` holds the activations of the row's features in the run that is patched.
    """
    plain = [_plain_edit(site, values) for site in row if site.basis is None]
    shared: dict[Site, list[Site]] = {}
    for site in row:
        if site.basis is not None:
            shared.setdefault(site.at(index=None), []).append(site)
    alone = len(plain) + len(shared) == 1
    return plain + [_feature_edit(reader, place, sites, values, current, alone) for place, sites in shared.items()]


def _plain_edit(site: Site, values: Values | None) -> Intervention:
    return Zero(site) if values is None else edit_with(site, values[site], Replace)


def _feature_edit(
    reader: Reader, place: Site, features: Sequence[Site], values: Values | None, current: Values, alone: bool
) -> Intervention:
    """The edit of features of one dictionary in one place.

    Where it is the run's only edit, or the dictionary reads another hook than it writes (a transcoder), the change of
    the activations times their decoder rows is added; else the features are encoded in the run itself and set.
    """
    dictionary, hook = reader.dictionaries[place.basis or ""], place.at(basis=None)
    whole = [site for site in features if site.index is None]
    features = whole[:1] or features
    indices = slice(None) if whole else [int(site.index or 0) for site in features]
    old = map_values(_side_by_side, *(current[site] for site in features))
    new = map_values(torch.zeros_like, old)
    if values is not None:
        new = map_values(_side_by_side, *(values[site] for site in features))
    if not alone and source_hook(reader.model, dictionary, place).hook == hook.hook:
        return edit_with(hook, new, lambda site, value: SetFeatures(site, dictionary, indices, value))
    change = map_values(lambda a, b: _as_slice(hook, (a - b) @ dictionary.W_dec[indices], reader.model), new, old)
    return edit_with(hook, change, Add)


def _side_by_side(*parts: Tensor) -> Tensor:
    return torch.cat(parts, -1)


def _as_slice(hook: Site, written: Tensor, model) -> Tensor:
    """What a dictionary writes as a slice of its hook: one of all heads at once has them flattened."""
    every_head = hook.name in HEAD_NAMES and hook.head is None
    return written.unflatten(-1, (-1, model.cfg.d_head)) if every_head else written

"""Questions that run the model: the features of a prompt, and those that tell two sets of texts apart.

The model is the one given when the index was opened, else loaded by the name in its manifest; either way its weights
must hash to those that were scanned. The SAE is the copy in the index.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.metrics import Metric
from mechkit.core.progress import progress
from mechkit.core.prompts import Prompts
from mechkit.dictionaries.saes import read_sae
from mechkit.features.corpus import bos_of
from mechkit.features.files import SAES
from mechkit.features.provenance import refuse, weights_hash
from mechkit.features.ranked import Ranked
from mechkit.features.reading import device_of, encoded, own_part, padded, values_at

if TYPE_CHECKING:
    from mechkit.features.index import FeatureIndex

AT_ONCE = 32
"""Texts of a forward pass."""


@dataclass(frozen=True, eq=False, repr=False)
class Lookup(Ranked):
    """The features of a prompt's tokens, most active first."""

    tokens: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Per token: `pos`, `token`, `n_features` that fire, and `error`, the length of what the SAE misses over the length
    of what it rebuilds; `counted` is whether the scan counted such tokens."""

    def at(self, pos: int) -> Ranked:
        """The features of one token; -1 is the last. Raises ValueError for a place the prompt lacks."""
        if not -len(self.tokens) <= pos < len(self.tokens):
            raise ValueError(f"no token {pos}; the prompt has {len(self.tokens)} tokens")
        own = self.rows.loc[self.rows["pos"] == pos % len(self.tokens)]
        return Ranked(own.reset_index(drop=True), self.unit, {**self.meta, "pos": pos})


@torch.no_grad()
def lookup(
    index: "FeatureIndex", prompt: Any, n: int | None = None, *, effect: Metric | Callable | None = None
) -> Lookup:
    """The features that fire on each token of `prompt` (text, token ids or a `Prompts`), most active first.

    Columns: `pos`, `token`, `feature`, `activation`, and `share`, the part of the features' written sum that this one
    accounts for (its projection on the sum; shares of a token sum to 1). `n` keeps the first `n` of each token.
    With a metric as `effect` there is a column of that name, the change of the metric when that firing is taken out
    alone (below 0: the firing raises the metric), and rows are ranked by its size. A metric that needs an answer takes
    the model's own likeliest next token, unless a `Prompts` carries one.

    Unit: the SAE's activations, or the metric's. Cost: one forward pass as far as the SAE's hook; with `effect` a
    sweep of a run per row besides.
    Raises ValueError where the model at hand is not the one that was scanned, and for an empty or too long prompt.
    """
    model, sae = model_of(index), sae_of(index)
    ids = tokens_of(index, model, prompt)
    if len(ids) == 0 or len(ids) > model.cfg.n_ctx:
        raise ValueError(f"the prompt has {len(ids)} tokens; this model reads 1 to {model.cfg.n_ctx}")
    tokens, real = padded([ids], device_of(model))
    hook, out = index.hook, sae.cfg.metadata.hook_name_out or index.hook
    values = values_at(model, tokens, [hook, out])
    active = encoded(sae, values[hook], real)
    words = [index.text.word(token) for token in ids]
    rows, unit = _firings(active.float(), sae, words), "activation"
    by = rows["activation"]
    if effect is not None:
        rows, unit = _with_effect(index, rows, prompt if isinstance(prompt, Prompts) else ids, effect)
        by = rows["effect"]
    rows = rows.iloc[np.lexsort((rows["feature"], rows["pos"], -by.abs()))].reset_index(drop=True)
    if n is not None:
        rows = rows.groupby("pos", sort=False).head(n).reset_index(drop=True)
    target = own_part(sae, values[out]).flatten(2)[0].float()
    error = (sae(own_part(sae, values[hook])).flatten(2)[0].float() - target).norm(dim=1) / target.norm(dim=1)
    ignored = set(index.manifest["settings"]["ignore"])
    of_tokens = {"pos": range(len(ids)), "token": words, "n_features": (active != 0).sum(1).cpu(), "error": error.cpu()}
    table = pd.DataFrame(of_tokens).assign(counted=[token not in ignored for token in ids])
    return Lookup(rows, unit, {"prompt": "".join(words)}, table)


def _firings(active: Float[Tensor, "pos feature"], sae, words: Sequence[str]) -> pd.DataFrame:
    """A row for every feature that fires on a token."""
    pos, feature = active.nonzero(as_tuple=True)
    share = _shares(active, sae.W_dec, pos, feature)
    return pd.DataFrame(
        {"pos": pos.cpu(), "token": [words[i] for i in pos.tolist()], "feature": feature.cpu(),
         "activation": active[pos, feature].cpu(), "share": share.cpu()}
    )  # fmt: skip


def _with_effect(
    index: "FeatureIndex", rows: pd.DataFrame, prompt: Prompts | list[int], metric: Metric | Callable
) -> tuple[pd.DataFrame, str]:
    """The firings with what the metric changes by without each, and its unit."""
    from mechkit.features.effects import effects_of_firings

    prompts = prompt if isinstance(prompt, Prompts) else Prompts.from_tokens([prompt])
    firings = list(zip(rows["pos"].tolist(), rows["feature"].tolist(), strict=True))
    ignore = index.manifest["settings"]["ignore"]
    changes, measured = effects_of_firings(model_of(index), sae_of(index), prompts, firings, metric, ignore=ignore)
    return rows.assign(effect=changes.float().numpy()), measured.unit


def effect(index: "FeatureIndex", features: int | Sequence[int], prompts: Any, metric: Any = None, **options: Any):
    """What features do to a metric on prompts, as a `Result`; see `effects.effect`, whose options these are.

    `prompts` is text, token ids, a list of either, or a `Prompts`. The metric is `logprob` unless given: of the
    prompts' answers, or of the model's own likeliest next token. Tokens that the scan ignored are not edited.
    """
    from mechkit.core.metrics import logprob
    from mechkit.features import effects

    model, settings = model_of(index), index.manifest["settings"]
    options = {"ignore": settings["ignore"], "name": index.sae, **options}
    found = prompts_of(index, model, prompts)
    return effects.effect(model, sae_of(index), features, found, metric or logprob, **options)


def prompts_of(index: "FeatureIndex", model: Any, prompts: Any) -> Prompts:
    """Prompts as the scan read its corpus: of text, token ids, a list of either; a `Prompts` as it is."""
    if isinstance(prompts, Prompts):
        return prompts
    several = not isinstance(prompts, str) and len(prompts) > 0 and not isinstance(prompts[0], int | np.integer)
    given = list(prompts) if several else [prompts]
    text = tuple(given) if all(isinstance(one, str) for one in given) else None
    return Prompts.from_tokens([tokens_of(index, model, one) for one in given], text=text)


def _shares(active: Tensor, W_dec: Tensor, pos: Tensor, feature: Tensor) -> Float[Tensor, "firing"]:
    rows = active[pos, feature][:, None] * W_dec[feature].float()
    written = rows.new_zeros(len(active), rows.shape[1]).index_add(0, pos, rows)
    return (rows * written[pos]).sum(1) / written.square().sum(1)[pos]


@torch.no_grad()
def contrast(
    index: "FeatureIndex", texts_a: Sequence[Any], texts_b: Sequence[Any], *, by: str = "mean", n: int | None = None
) -> Ranked:
    """The features that tell two sets of texts apart, greatest effect first.

    A feature's value on a text is its mean strength over the text's tokens (`by="max"`: the greatest). `effect` is the
    chance that it is greater on a text of a than on one of b, less the reverse (Cliff's delta, -1 to 1; ties count for
    neither). `p` is the Mann-Whitney test's, two-sided, by the normal approximation with ties; it is coarse under about
    eight texts a side. `q` is Benjamini and Hochberg's correction over the features that fire on any of the texts.
    Further columns: `mean_a`, `mean_b`, and `fires_a`, `fires_b`, the share of texts on which it fires.

    Unit: effect. Cost: one forward pass of every text as far as the SAE's hook.
    Raises ValueError for fewer than two texts a side, an empty or too long one, and for another model than the scanned.
    """
    if by not in ("mean", "max"):
        raise ValueError(f"by is mean or max, not {by!r}")
    if isinstance(texts_a, str) or isinstance(texts_b, str) or min(len(texts_a), len(texts_b)) < 2:
        raise ValueError("contrast compares two lists of at least two texts each")
    values = np.concatenate([_by_text(index, texts, by) for texts in (texts_a, texts_b)])
    tested = np.flatnonzero(values.any(0))
    values, n_a, n_b = values[:, tested], len(texts_a), len(texts_b)
    effect, p = mann_whitney(values, n_a)
    rows = pd.DataFrame(
        {"feature": tested, "effect": effect, "p": p, "q": adjusted(p),
         "mean_a": values[:n_a].mean(0), "mean_b": values[n_a:].mean(0),
         "fires_a": (values[:n_a] > 0).mean(0), "fires_b": (values[n_a:] > 0).mean(0)}
    )  # fmt: skip
    order = np.lexsort((tested, p, -np.abs(effect)))
    rows = rows.iloc[order[:n]].reset_index(drop=True)
    return Ranked(rows, "Cliff's delta", {"n_a": n_a, "n_b": n_b, "by": by, "n_tested": len(tested)})


def mann_whitney(values: np.ndarray, n_a: int) -> tuple[np.ndarray, np.ndarray]:
    """Cliff's delta and two-sided p of each column, between its first `n_a` rows and the others.

    The variance is that of the rank sum over all permutations, which takes ties into account.
    """
    n, n_b = len(values), len(values) - n_a
    ranks = pd.DataFrame(values).rank().to_numpy()
    excess = ranks[:n_a].sum(0) - n_a * (n + 1) / 2
    variance = n_a * n_b / (n * (n - 1)) * np.square(ranks - (n + 1) / 2).sum(0)
    z = np.divide(np.abs(excess), np.sqrt(variance), np.zeros_like(excess), where=variance > 0)
    return 2 * excess / (n_a * n_b), torch.special.erfc(torch.from_numpy(z) / 2**0.5).numpy()


def adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's q of each p: the least false discovery rate at which it would be called."""
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    found = np.empty_like(p)
    found[order] = np.minimum(1, np.minimum.accumulate(scaled[::-1])[::-1])
    return found


def _by_text(index: "FeatureIndex", texts: Sequence[Any], by: str) -> np.ndarray:
    """`[text, feature]`: mean or greatest strength over the tokens that count."""
    model, sae = model_of(index), sae_of(index)
    ids = [tokens_of(index, model, text) for text in texts]
    odd = next((i for i, one in enumerate(ids) if not 0 < len(one) <= model.cfg.n_ctx), None)
    if odd is not None:
        raise ValueError(f"text {odd} has {len(ids[odd])} tokens; this model reads 1 to {model.cfg.n_ctx}")
    ignored = set(index.manifest["settings"]["ignore"])
    found = np.zeros((len(ids), index.n_features))
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    groups = [order[i : i + AT_ONCE] for i in range(0, len(order), AT_ONCE)]
    if model.cfg.attention_dir != "causal":
        groups = [[i] for i in order]
    for group in progress(groups, "reading texts"):
        tokens, real = padded([ids[i] for i in group], device_of(model))
        values = values_at(model, tokens, [index.hook])
        strengths = encoded(sae, values[index.hook], real).abs().double().split([len(ids[i]) for i in group])
        for i, strength in zip(group, strengths, strict=True):
            counted = strength[torch.tensor([token not in ignored for token in ids[i]], device=strength.device)]
            if len(counted):
                found[i] = (counted.mean(0) if by == "mean" else counted.amax(0)).cpu().numpy()
    return found


def model_of(index: "FeatureIndex") -> Any:
    """The index's model: the one it was opened with, else loaded by name; checked once to be the one scanned.

    Raises ValueError where its weights are others.
    """
    kept = index.manifest["model"]
    if index._model is None:
        from mechkit.zoo.loading import load

        index._model = load(kept["name"], processing=kept["processing"], dtype=getattr(torch, kept["dtype"]))
    known = vars(index).setdefault("_known_models", set())
    if id(index._model) not in known:
        refuse(index.folder, {"model.sha256": kept["sha256"]}, {"model.sha256": weights_hash(index._model)})
        known.add(id(index._model))
    return index._model


def sae_of(index: "FeatureIndex") -> Any:
    """The copy of the SAE in the index, on the model's device."""
    kept = vars(index)
    if "_loaded_sae" not in kept:
        home, device = index.folder / SAES / index.sae / "sae", device_of(model_of(index))
        kept["_loaded_sae"] = read_sae(home, str(device))
    return kept["_loaded_sae"]


def tokens_of(index: "FeatureIndex", model: Any, prompt: Any) -> list[int]:
    """Token ids of text as the scan read it, of ids or of one prompt as they are. Raises ValueError for empty text."""
    if isinstance(prompt, Prompts):
        if len(prompt) != 1:
            raise ValueError(f"{len(prompt)} prompts are given; look at one of them at a time")
        return prompt.tokens[0, : prompt.lengths[0]].tolist()
    if not isinstance(prompt, str):
        ids = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
        return [int(token) for token in (ids[0] if ids and isinstance(ids[0], list) else ids)]
    if model.tokenizer is None:
        raise ValueError(f"the model has no tokenizer to read {prompt[:60]!r} with; give token ids instead")
    if not prompt.strip():
        raise ValueError("the prompt is empty; every prompt needs at least one token")
    ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return [bos_of(model), *ids] if index.manifest["settings"]["bos"] else list(ids)

"""`trace`: from a model and a prompt to an attribution graph that has been checked."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mechkit.core.prompts import Prompts
from mechkit.graphs.engine.attribution import Attribution
from mechkit.graphs.engine.frozen import FrozenModel
from mechkit.graphs.engine.growth import grow
from mechkit.graphs.engine.reading import mlp_input, require_fitting
from mechkit.graphs.engine.roots import Root, Target, logit_roots, roots_of, sites_read
from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.nodes import token_text


@torch.no_grad()
def trace(
    model,
    prompt: "str | Sequence[int] | Tensor | Prompts",
    dictionaries: Sequence | None = None,
    *,
    targets: Sequence[Target] | None = None,
    max_logits: int = 10,
    logit_probability: float = 0.95,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    centre_logits: bool = True,
    coverage: float = 1.0,
    max_nodes: int | None = None,
    memory: int | None = None,
    check: bool = True,
    index: Any = None,
) -> AttributionGraph:
    """The attribution graph of `model`'s answer to `prompt`: text, token ids, or `Prompts` of one prompt.

    `dictionaries` holds one basis per layer (`mechkit.dictionaries`: transcoders, cross-layer ones, neurons); left
    out, a bundled model uses its own and any other model its own MLP neurons. `targets` are what the graph explains:
    tokens (text or id), pairs of tokens (the difference of their logits), directions `[d_model]` over what the
    unembedding reads, sites (`L1.H2.z@-1`, `L0.mlp_out[name]@3#17`) or pairs of a site and a direction there; left out,
    the likeliest next tokens, up to `max_logits` of them, until they hold `logit_probability`. With `centre_logits`
    logits are measured from the mean logit.

    All features get a row of the matrix unless `coverage` or `max_nodes` says otherwise: then the most influential
    ones, until that share of the influence on the targets is followed to its end (`graph.coverage`) or there are as
    many. `memory` is the most to use, in bytes (half of what is free, unless named). With `check`, every kept feature
    is suppressed in the model and the change of the first target compared with the prediction.
    `index` is what `mechkit.scan` made of the dictionaries, one or several: what features are called and where they
    fire comes from there (`graph.explain`).

    Unit of the matrix: pre-activations and logits. Cost: one forward pass, matrix products, and with `check` three
    passes per kept feature. Raises ValueError for a prompt that is empty, too long or not one, for dictionaries that
    do not fit the model, for an index of others, for targets that it has not, and for hooks and modules of the user's
    own that change its linear parts; MemoryError where memory does not suffice, with what is needed and what fits.
    Source: Ameisen et al. 2025 (Circuit Tracing).

    >>> graph = trace(model, "35+59=")
    >>> graph.logits[0].name, round(graph.scores["completeness"], 2)
    ('94', 0.98)
    """
    prompts, bases = as_prompts(model, prompt), fitting_bases(model, dictionaries)
    graph = graph_on(
        FrozenModel.on(model, prompts, sites_kept(model, bases, targets)),
        bases,
        targets=targets,
        max_logits=max_logits,
        logit_probability=logit_probability,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        centre_logits=centre_logits,
        coverage=coverage,
        max_nodes=max_nodes,
        memory=memory,
    )
    if index is not None:
        graph.explain(index)
    if check:
        from mechkit.graphs.truth.check import check_graph

        graph.check = check_graph(graph)
    return graph


def graph_on(
    frozen: FrozenModel,
    bases: Sequence,
    *,
    targets: Sequence[Target] | None = None,
    max_logits: int = 10,
    logit_probability: float = 0.95,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    centre_logits: bool = True,
    coverage: float = 1.0,
    max_nodes: int | None = None,
    memory: int | None = None,
) -> AttributionGraph:
    """The graph of a model that is frozen on a prompt, unchecked; options as in `trace`."""
    model, prompts = frozen.model, frozen.prompts
    roots, weights = _roots(frozen, bases, targets, max_logits, logit_probability, centre_logits)
    engine = Attribution(frozen, bases, roots, model.tokenizer is not None and _is_bos(model, prompts))
    grown = grow(engine, weights, coverage=coverage, max_nodes=max_nodes, memory=memory)
    kept = grown.matrix.prune(node_threshold, edge_threshold)
    thresholds = {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
    meta = _meta(model, prompts, bases, centre_logits, thresholds)
    return AttributionGraph(engine, grown.matrix, kept, meta, grown.rows, grown.targets)


def sites_kept(model, bases: Sequence, targets: Sequence[Target] | None) -> list[str]:
    """Sites that a frozen model keeps beside its own for these dictionaries and targets."""
    return [mlp_input(basis) for basis in bases] + sites_read(model, targets or ())


def as_prompts(model, prompt) -> Prompts:
    """One prompt as `Prompts`, from text, token ids or itself."""
    if isinstance(prompt, Prompts):
        return prompt
    if isinstance(prompt, str):
        return Prompts.from_text(model, prompt)
    made = Prompts.from_tokens(prompt)
    outside = made.tokens[(made.tokens < 0) | (made.tokens >= model.cfg.d_vocab)]
    if len(outside):
        raise ValueError(f"token id {int(outside[0])} is outside the vocabulary (0 to {model.cfg.d_vocab - 1})")
    if made.tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(f"prompt of {made.tokens.shape[1]} tokens; the model's context is {model.cfg.n_ctx}")
    return made.to(model.W_E.device)


def fitting_bases(model, given: Sequence | None) -> Sequence:
    """One basis per layer: those given, or the model's own. Raises ValueError where they do not fit it."""
    if model.cfg.attn_only:
        return []
    dictionaries = _own_dictionaries(model) if given is None else list(given)
    require_fitting(model, dictionaries)
    return dictionaries


def _roots(
    frozen: FrozenModel, bases: Sequence, targets: Sequence[Target] | None, most: int, enough: float, centred: bool
) -> tuple[list[Root], Tensor]:
    """What the graph explains, and the weights that influence starts from; they sum to 1."""
    if targets is not None:
        roots = roots_of(frozen, bases, list(targets), centred=centred)
        return roots, frozen.final.new_full((len(roots),), 1 / len(roots))
    chosen, probabilities = _likeliest(frozen, most, enough)
    return logit_roots(frozen, chosen, centred=centred), probabilities / probabilities.sum()


def _own_dictionaries(model) -> Sequence:
    """A bundled model's transcoders, any other model's neurons."""
    from mechkit.dictionaries import neurons, transcoders_for

    return transcoders_for(model) or neurons(model)


def _likeliest(frozen: FrozenModel, most: int, enough: float) -> tuple[list[int], Tensor]:
    probabilities, ids = frozen.capped_logits.softmax(-1).sort(descending=True)
    needed = int((probabilities.cumsum(0) < enough).sum()) + 1
    chosen = ids[: min(needed, most)]
    return chosen.tolist(), probabilities[: len(chosen)]


def _is_bos(model, prompts: Prompts) -> bool:
    return bool(model.cfg.default_prepend_bos) and int(prompts.tokens[0, 0]) == model.tokenizer.bos_token_id


def _meta(model, prompts: Prompts, bases, centred: bool, thresholds: dict) -> dict:
    from mechkit import __version__
    from mechkit.zoo import origin_of

    origin = origin_of(model)
    return {
        "verb": "trace",
        "mechkit": __version__,
        "model": model.cfg.model_name or "",
        "weights": None if origin is None else origin.sha256,
        "processing": None if origin is None else origin.processing,
        "prompt": prompts.text[0] if prompts.text else " ".join(map(str, prompts.tokens[0].tolist())),
        "tokens": [token_text(model, token) for token in prompts.tokens[0].tolist()],
        "dictionaries": [basis.name for basis in bases],
        "logits": "measured from the mean logit" if centred else "raw",
        **thresholds,
    }

"""`trace`: from a model and a prompt to an attribution graph that has been checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mechkit.core.prompts import Prompts
from mechkit.graphs.attribution import Attribution, mlp_input
from mechkit.graphs.frozen import FrozenModel
from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.influence import Matrix


@torch.no_grad()
def trace(
    model,
    prompt: "str | Sequence[int] | Tensor | Prompts",
    dictionaries: Sequence | None = None,
    *,
    max_logits: int = 10,
    logit_probability: float = 0.95,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    centre_logits: bool = True,
    check: bool = True,
) -> AttributionGraph:
    """The attribution graph of `model`'s answer to `prompt`: text, token ids, or `Prompts` of one prompt.

    `dictionaries` holds one transcoder per layer (`mechkit.dictionaries`); left out, a bundled model uses its own
    and any other model its own MLP neurons. The targets are the likeliest next tokens, up to `max_logits` of them,
    until they hold `logit_probability`; with `centre_logits` they are measured from the mean logit. With `check`,
    every kept feature is suppressed in the model and the change compared with the prediction.

    Unit of the matrix: pre-activations and logits. Cost: one forward pass, matrix products, and with `check` three
    passes per kept feature. Raises ValueError for a prompt that is empty, too long or not one, for dictionaries that
    do not fit the model, and for architectures that are not covered yet.
    Source: Ameisen et al. 2025 (Circuit Tracing).

    >>> graph = trace(model, "35+59=")
    >>> graph.logits[0].name, round(graph.scores["completeness"], 2)
    ('94', 0.98)
    """
    prompts = as_prompts(model, prompt)
    bases = _bases(model, dictionaries)
    frozen = FrozenModel.on(model, prompts, [mlp_input(basis) for basis in bases])
    chosen, probabilities = _likeliest(frozen, max_logits, logit_probability)
    bos = model.tokenizer is not None and _is_bos(model, prompts)
    engine = Attribution(frozen, bases, chosen, centre_logits, bos)
    values = engine.rows(engine.targets)[0]
    weights = values.new_zeros(len(engine.targets))
    weights[len(engine.features) :] = probabilities / probabilities.sum()
    matrix = Matrix(values, engine.targets, engine.sources, weights)
    kept = matrix.prune(node_threshold, edge_threshold)
    thresholds = {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
    graph = AttributionGraph(
        engine, matrix, kept, _meta(model, prompts, frozen, chosen, bases, centre_logits, thresholds)
    )
    if check:
        from mechkit.graphs.check import check_graph

        graph.check = check_graph(graph)
    return graph


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


def _bases(model, given: Sequence | None) -> Sequence:
    if model.cfg.attn_only:
        return []
    dictionaries = _own_dictionaries(model) if given is None else list(given)
    layers = [basis.layer for basis in dictionaries]
    if layers != list(range(model.cfg.n_layers)):
        raise ValueError(
            f"dictionaries are for layers {layers}; the model needs one for each of 0 to {model.cfg.n_layers - 1}"
        )
    return dictionaries


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


def _meta(model, prompts: Prompts, frozen, chosen, bases, centred: bool, thresholds: dict) -> dict:
    from mechkit import __version__
    from mechkit.graphs.attribution import token_text
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

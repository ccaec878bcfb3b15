"""On every architecture and basis: rows sum, columns and biases equal frozen ablations made by running the model."""

from functools import partial

import pytest
import torch

import mechkit as mk
from mechkit.dictionaries import neurons
from tests.core.architectures import SETTINGS, make
from tests.graphs.frozen_runs import TOKENS, FrozenRuns, across, traced, transcoders

EXACT = 1e-5
"""Required: 1e-4 of the sum of sizes of a row. Sums of some hundred float32 terms."""

OTHER_LINEAR_PARTS = (
    "a hook that adds in place", "a hook that sees the whole batch", "hooks on modules", "a hook on the model",
    "a replaced forward", "a replaced unembedding", "a class of its own",
)  # fmt: skip
"""Variants whose attention, residual stream or logits are not what the model's weights say."""

NO_PROMPT_OF_ONE = ("hooks that mask padding",)
"""A variant that runs on its own two prompts only."""

TRACED = [name for name in SETTINGS if name not in (*OTHER_LINEAR_PARTS, *NO_PROMPT_OF_ONE)]

BASES = {
    "neurons": neurons,
    "skip JumpReLU": lambda model: transcoders(model, skip=True, threshold=torch.full((30,), 0.2)),
    "across layers": across,
    "TopK": partial(transcoders, k=4),
    "BatchTopK, skip": partial(transcoders, k=4, over="prompt", skip=True),
    "ReLU": transcoders,
}
"""Bases by name, made for a model."""

FEW = ("neurons", "skip JumpReLU", "across layers")


def norm_weights(model):
    """Norm weights that are not all alike."""
    for name, parameter in model.named_parameters():
        if name.endswith(("_post.w", "norm.w")):
            parameter.data = 1 + 0.3 * torch.sin(torch.arange(parameter.numel(), dtype=parameter.dtype))
    return model


def errors(graph, biases_of=None):
    """Largest error of rows, of columns by kind, and of biases by name; relative to the sum of sizes of each row.

    Biases of one layer, or of all.
    """
    matrix, runs = graph.matrix(), FrozenRuns(graph)
    sizes = matrix.abs().sum(1)
    found = {"rows": float(((matrix.sum(1) - graph.preactivations).abs() / sizes).max())}
    nothing_taken = runs.targets([[]])[0]
    found["targets"] = float(((nothing_taken - graph.preactivations).abs() / sizes).max())
    kinds = {}
    for i, node in enumerate(graph.sources):
        if node.kind != "bias" or node.name == "b_dec":
            kinds.setdefault(node.kind if node.kind != "bias" else "b_dec", []).append(i)
    for kind, members in kinds.items():
        chosen = members[:: max(1, len(members) // 8)]
        error = (runs.columns(chosen) - matrix[:, chosen]).abs() / sizes[:, None]
        found[kind] = float(error.max())
    for i, node in enumerate(graph.sources):
        if node.kind == "bias" and node.name != "b_dec" and biases_of in (None, node.layer):
            error = (runs.bias_column(node) - matrix[:, i]).abs() / sizes
            found[node.name] = max(found.get(node.name, 0), float(error.max()))
    return found


@pytest.mark.parametrize("name", TRACED)
def test_rows_sum_and_columns_equal_frozen_ablations(build, name):
    model = norm_weights(make(build, name))
    kinds = ("neurons",) if model.cfg.attn_only else FEW
    kinds = kinds[1:] if name == "a replaced MLP" else kinds
    for kind in kinds[TRACED.index(name) % len(kinds) :][:1]:
        found = errors(traced(model, BASES[kind](model)), biases_of=TRACED.index(name) % model.cfg.n_layers)
        assert max(found.values()) < EXACT, (kind, found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("name", TRACED)
def test_rows_sum_and_columns_equal_frozen_ablations_on_all_bases(build, name, kind):
    model = norm_weights(make(build, name))
    if kind == "neurons" and name == "a replaced MLP":
        pytest.skip("a module of the user's own has no neurons that are known")
    if kind != "neurons" and model.cfg.attn_only:
        pytest.skip("there is no MLP")
    found = errors(traced(model, BASES[kind](model)))
    assert max(found.values()) < EXACT, found


def test_what_clipping_puts_into_values_equals_its_frozen_ablation(build):
    model = make(build, "clipped q, k, v")
    graph = traced(model, transcoders(model))
    columns = [i for i, node in enumerate(graph.sources) if node.name == "clipped_v"]
    assert len(columns) == 3
    assert float(graph.matrix()[:, columns].abs().max()) > 0.01  # something was clipped
    assert errors(graph)["clipped_v"] < EXACT


@pytest.mark.parametrize("name", OTHER_LINEAR_PARTS)
def test_a_model_that_is_not_its_weights_is_named(build, name):
    model = make(build, name)
    with pytest.raises(ValueError, match=r"graphs: trace a model without|logits are"):
        traced(model, transcoders(model))


def test_neurons_of_a_module_of_ones_own_are_refused(build):
    with pytest.raises(ValueError, match="the MLP of layer 1 is a Doubled, whose neurons are not known"):
        traced(make(build, "a replaced MLP"), None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("LayerNorm", "across layers"), ("Gemma 2", "neurons"), ("Gemma 2", "skip JumpReLU"), ("OLMo 2", "neurons"),
        ("folded parallel", "neurons"), ("mixture of experts", "neurons"), ("Llama", "TopK"),
        ("split query, key and value inputs", "neurons"), ("SoLU with its norm", "neurons"),
    ],
)  # fmt: skip
def test_every_model_and_basis_can_be_checked(build, name, kind):
    model = norm_weights(make(build, name))
    graph = mk.trace(model, TOKENS, BASES[kind](model), node_threshold=0.3 if kind == "neurons" else 0.8)
    check = graph.check
    assert check.exact_error < EXACT
    assert len(check.nodes) > 3
    for values in (check.predicted, check.gradient, check.direct, check.frozen, check.measured):
        assert bool(values.isfinite().all())
        assert float(values.abs().max()) > 0
    last = torch.tensor([node.layer == model.cfg.n_layers - 1 for node in check.nodes])
    if bool(last.any()):  # what the last layer writes is read by logits alone: with norms held, the edge is exact
        tolerance = 1e-3 if model.cfg.output_logits_soft_cap and model.cfg.output_logits_soft_cap > 0 else 1e-4
        torch.testing.assert_close(check.predicted[last], check.frozen[last], rtol=tolerance, atol=tolerance)

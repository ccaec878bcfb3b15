"""The matrix equals its definition by autograd, its rows sum to the pre-activations, its biases to their ablations."""

import copy

import pytest
import torch

import mechkit as mk
from mechkit.core.loop import hooked
from mechkit.dictionaries import neurons
from tests.conftest import tiny_model
from tests.graphs.brute import TOKENS, FrozenGradients, random_transcoders, traced
from tests.graphs.frozen_runs import across

ARCHITECTURES = {
    "layer norm": {},
    "folded layer norm": {"normalization_type": "LNPre"},
    "rms norm": {"normalization_type": "RMS", "final_rms": True},
    "no norm": {"normalization_type": None},
    "rotary, grouped-query": {"positional_embedding_type": "rotary", "rotary_dim": 8, "n_key_value_heads": 1},
    "one layer": {"n_layers": 1},
    "one head": {"n_heads": 1},
    "soft-capped logits": {"output_logits_soft_cap": 5.0},
}

# Sums of a few hundred float32 terms: relative to the sum of sizes, 1e-7 a term and a factor for cancellation.
FLOAT32 = 5e-6


def row_errors(graph):
    matrix = graph.matrix()
    return (matrix.sum(1) - graph.preactivations).abs() / matrix.abs().sum(1)


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("bos", [False, True], ids=["no bos", "bos"])
def test_the_matrix_equals_autograd_through_the_frozen_model(changes, skip, bos):
    model = tiny_model(**({"n_layers": 3} | changes))
    hook = "hook_resid_mid" if model.cfg.normalization_type is None else "ln2.hook_normalized"
    graph = traced(model, random_transcoders(model, skip=skip, hook=hook), bos=bos)
    chosen = list(range(len(graph.targets)))[::-7]  # the last logit, then features of every layer
    if changes.get("output_logits_soft_cap"):  # graphs take logits before the cap, the model gives them after
        chosen = [i for i in chosen if graph.targets[i].kind == "feature"]
    expected, found = FrozenGradients(graph).matrix(chosen), graph.matrix()[chosen]
    known = ~expected.isnan()
    assert known.sum(1).min() == sum(node.kind != "bias" for node in graph.sources)
    assert float(((found - expected) / found.abs().sum(1, keepdim=True))[known].abs().max()) < FLOAT32
    assert float(row_errors(graph).max()) < FLOAT32


@pytest.mark.parametrize("hook", ["hook_resid_mid", "hook_resid_pre"])
def test_transcoders_that_read_the_residual_stream_give_rows_that_sum(hook):
    model = tiny_model(n_layers=3)
    graph = traced(model, random_transcoders(model, hook=hook, skip=True))
    assert float(row_errors(graph).max()) < FLOAT32


def test_jumprelu_features_below_their_threshold_are_no_nodes():
    model = tiny_model()
    graph = traced(model, random_transcoders(model, threshold=0.8))
    values = [node.value for node in graph.sources if node.kind == "feature"]
    assert values
    assert min(values) > 0.8
    assert float(row_errors(graph).max()) < FLOAT32


@pytest.mark.parametrize("act_fn", ["relu", "gelu"])
def test_neurons_are_a_basis_without_errors(act_fn):
    model = tiny_model(act_fn=act_fn)
    graph = traced(model, neurons(model))
    errors = graph.matrix()[:, graph.weighted.of_kind("error")]
    assert float(errors.abs().max()) < 1e-5  # rounding of one MLP output
    assert float(row_errors(graph).max()) < FLOAT32


def test_a_model_without_mlps_is_traced_from_its_embeddings():
    graph = traced(tiny_model(attn_only=True, n_layers=3), None)
    assert {node.kind for node in graph.sources} == {"token", "position", "bias"}
    assert float(row_errors(graph).max()) < FLOAT32


def test_raw_logits_are_targets_when_asked_for():
    model = tiny_model()
    graph = traced(model, random_transcoders(model), centre_logits=False)
    logits = model(torch.tensor([TOKENS]))[0, -1]
    expected = torch.stack([logits[node.index] for node in graph.logits])
    torch.testing.assert_close(graph.preactivations[-len(graph.logits) :], expected.detach())
    assert float(row_errors(graph).max()) < FLOAT32


@pytest.mark.parametrize("cut_above", [False, True], ids=["top layer", "lower layer"])
def test_head_loadings_are_the_paths_that_a_head_carries_last(cut_above):
    model = tiny_model(n_layers=2)
    graph = traced(model, random_transcoders(model))
    targets = [node for node in graph.targets if node.layer >= 1]
    streams = graph.head_loadings(targets)
    rows = torch.tensor([graph.targets.index(node) for node in targets])
    assert float((streams.sum(0) - graph.matrix()[rows]).abs().max()) < 1e-5  # float32 sums in another order
    layer, head = (0, 1) if cut_above else (1, 0)
    above = [(1, (0, 1))] if cut_above else []
    whole, without = (FrozenGradients(graph, [*above, *cut]).matrix(rows.tolist()) for cut in ([], [(layer, (head,))]))
    expected = whole - without
    if not cut_above:  # through head (1, 0) at all: it is the last one for whatever reads above layer 1
        through_one = torch.tensor([node.kind == "logit" or node.layer == 1 for node in targets])
        expected, streams = expected[through_one], streams[:, through_one]
    known = ~expected.isnan()
    assert float(expected[known].abs().max()) > 0.01
    assert float((streams[1 + layer * 2 + head] - expected)[known].abs().max()) < 1e-5


def bias_parameters(model, name, layer):
    block = model.blocks[layer] if layer < model.cfg.n_layers else None
    return {
        "ln1.b": lambda: block.ln1.b,
        "b_V": lambda: block.attn.b_V,
        "b_O": lambda: block.attn.b_O,
        "ln_final.b": lambda: model.ln_final.b,
        "b_U": lambda: model.unembed.b_U,
    }[name]()


@torch.no_grad()
def target_values(graph, model, edits=()):
    """Every target's pre-activation when `model` runs with the graph's patterns, scales and MLP outputs."""
    frozen, seen = graph.attribution.frozen, {}
    hooks = [hook for edit in frozen.freeze(mlps=True) for hook in edit.hooks(model, frozen.prompts)]
    hooks += [edit_hook for edit in edits for edit_hook in edit.hooks(model, frozen.prompts)]
    hooks += [
        (b.hook_in, lambda x, hook, layer=b.layer: seen.__setitem__(layer, x[0])) for b in graph.attribution.bases
    ]
    with hooked(model, hooks):
        logits = model(frozen.prompts.tokens)[0, -1]
    centred = logits - logits.mean()
    values = []
    for node in graph.targets:
        basis = None if node.kind == "logit" else graph.attribution.bases[node.layer]
        at_feature = basis and seen[node.layer][node.pos] @ basis.W_enc[:, node.index] + basis.b_enc[node.index]
        values.append(centred[node.index] if basis is None else at_feature)
    return torch.stack(values)


def bias_errors(graph):
    """Per bias: how far its column is from its frozen ablation, relative to each row's sizes, and the column's size."""
    model, bases = graph.attribution.frozen.model, graph.attribution.bases
    before, sizes, found = target_values(graph, model), graph.matrix().abs().sum(1), {}
    positions = f"{graph.attribution.mlp_positions.start}:{graph.attribution.mlp_positions.stop}"
    for column, node in enumerate(graph.sources):
        if node.kind != "bias":
            continue
        changed, edits, shift = copy.deepcopy(model), [], 0
        if node.name == "b_dec":
            edits = [mk.Add(f"L{node.layer}.mlp_out@{positions}", -bases[node.layer].b_dec)]
        elif node.name == "b_enc":
            own = [t.kind == "feature" and t.layer == node.layer for t in graph.targets]
            added = [
                bases[node.layer].b_enc[t.index] if mine else 0 for t, mine in zip(graph.targets, own, strict=True)
            ]
            shift = torch.tensor([float(value) for value in added])
        else:
            bias_parameters(changed, node.name, node.layer).data.zero_()
        ablated = before - (target_values(graph, changed, edits) - shift)
        values = graph.matrix()[:, column]
        found[node.name, node.layer] = float((ablated - values).abs().div(sizes).max()), float(values.abs().max())
    return found


@pytest.mark.parametrize("bos", [False, True], ids=["no bos", "bos"])
def test_each_bias_column_equals_its_frozen_ablation(bos):
    model = tiny_model(n_layers=2)
    found = bias_errors(traced(model, random_transcoders(model), bos=bos))
    assert max(error for error, _ in found.values()) < FLOAT32
    assert min(size for _, size in found.values()) > 1e-3
    assert {name for name, _ in found} == {"ln1.b", "b_V", "b_O", "b_enc", "b_dec", "ln_final.b", "b_U"}


@pytest.mark.parametrize("text", ["35+59=", "99+99="])
def test_each_bias_column_of_the_bundled_model_equals_its_frozen_ablation(addition, text):
    found = bias_errors(mk.trace(addition, text, check=False))
    assert max(error for error, _ in found.values()) < FLOAT32  # measured 7e-7
    carrying = {name for (name, _), (_, size) in found.items() if size > 1e-3}
    assert carrying == {"b_O", "b_enc", "b_dec", "b_U"}  # folding has emptied b_V and the norms' biases


def test_dictionaries_that_do_not_fit_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"layers \[0\]; the model needs one for each of 0 to 1"):
        mk.trace(model, TOKENS, random_transcoders(model)[:1])
    with pytest.raises(ValueError, match="graphs follow"):
        mk.trace(model, TOKENS, random_transcoders(model, hook="hook_attn_out"))
    with pytest.raises(ValueError, match="writes 16 numbers; this model has d_model 8"):
        mk.trace(tiny_model(d_model=8), TOKENS, random_transcoders(model))
    with pytest.raises(ValueError, match="which is no hook of this model"):
        mk.trace(tiny_model(normalization_type=None), TOKENS, random_transcoders(model))
    with pytest.raises(ValueError, match="writes to layers up to 2; this model's last is 1"):
        mk.trace(model, TOKENS, across(tiny_model(n_layers=3))[:2])


def test_prompts_that_cannot_be_traced_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="token id 99 is outside the vocabulary"):
        mk.trace(model, [1, 99])
    with pytest.raises(ValueError, match="13 tokens; the model's context is 12"):
        mk.trace(model, list(range(13)))
    with pytest.raises(ValueError, match="one prompt, 2 were given"):
        mk.trace(model, mk.Prompts.from_tokens([[1, 2], [3, 4]]))

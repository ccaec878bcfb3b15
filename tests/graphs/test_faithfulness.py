"""What is left of an answer when only some features are: against an MLP written out by hand."""

import pytest
import torch

import mechkit as mk
from mechkit.core.loop import hooked
from mechkit.dictionaries import neurons
from tests.conftest import tiny_model
from tests.graphs.frozen_runs import TOKENS, across, traced, transcoders

MODELS = {
    "transcoders": lambda model: transcoders(model),
    "skip": lambda model: transcoders(model, skip=True),
    "across layers": lambda model: across(model),
    "before a norm": lambda model: transcoders(model, before_norm=True),
    "neurons": lambda model: neurons(model),
}


@pytest.fixture(scope="module", params=MODELS)
def graph(request):
    norms = {"use_normalization_before_and_after": True, "normalization_type": "RMS"}
    model = tiny_model(n_layers=3, **(norms if request.param == "before a norm" else {}))
    return mk.trace(model, TOKENS, MODELS[request.param](model), node_threshold=0.6, check=False, max_logits=2)


def left_by_hand(graph, kept, *, others=False, errors=True, means=None):
    """The answer's logit with MLPs replaced by what is left of them, each feature's activation read live."""
    engine, model, seen = graph.attribution, graph.attribution.frozen.model, {}

    def rebuilt(layer, mask_all):
        total = 0
        for basis in engine.bases:
            if layer in basis.reaches:
                acts = basis.activations(seen[basis.layer])[0]
                mask = torch.full_like(acts, float(others))
                for node in kept:
                    if node.layer == basis.layer:
                        mask[node.pos, node.index] = 1 - float(others)
                filled = torch.zeros_like(acts) if means is None else means[basis.layer].expand_as(acts)
                acts = acts if mask_all else acts * mask + filled * (1 - mask)
                W = basis.W_dec if basis.W_dec.ndim == 2 else basis.W_dec[:, layer - basis.layer]
                total = total + acts @ W
        basis = engine.bases[layer]
        return total + basis.b_dec + (0 if basis.W_skip is None else seen[layer][0] @ basis.W_skip.T)

    def change(layer, out):
        left = rebuilt(layer, False)
        return left[None] if not errors else out - rebuilt(layer, True) + left

    hooks = [(b.hook_in, lambda x, hook, layer=b.layer: seen.__setitem__(layer, x)) for b in engine.bases]
    handles = []
    for basis in engine.bases:
        if basis.hook_out.endswith("mlp.hook_out"):
            mlp = model.blocks[basis.layer].mlp
            handles.append(mlp.register_forward_hook(lambda m, i, out, layer=basis.layer: change(layer, out)))
        else:
            hooks.append((basis.hook_out, lambda x, hook, layer=basis.layer: change(layer, x)))
    try:
        with torch.no_grad(), hooked(model, hooks):
            logits = model(engine.frozen.prompts.tokens)[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return float(logits[graph.roots[0].index] - logits.mean())


def kept_features(graph):
    return [graph.sources[i] for i in graph.kept_sources if graph.sources[i].kind == "feature"]


def test_what_is_left_is_what_mlps_without_the_other_features_give(graph):
    found, kept = graph.faithfulness(), kept_features(graph)
    assert 0 < found.n_kept == len(kept) < found.n_active
    close = lambda value: pytest.approx(value, abs=1e-4)  # float32  # noqa: E731
    assert found.none == close(left_by_hand(graph, []))
    assert found.kept == close(left_by_hand(graph, kept))
    assert found.others == close(left_by_hand(graph, kept, others=True))
    assert found.all == close(graph.roots[0].value)
    if found.without_errors is not None:
        expected = [([], True), ([], False), (kept, False)]
        for value, (nodes, others) in zip(found.without_errors, expected, strict=True):
            assert value == close(left_by_hand(graph, nodes, others=others, errors=False))
    assert len({round(value, 3) for value in (found.none, found.kept, found.others, found.all)}) == 4
    assert found.score == pytest.approx((found.kept - found.none) / (found.all - found.none))


def test_neurons_miss_nothing_and_dictionaries_do(graph):
    found, own = graph.faithfulness(), graph.attribution.bases[0].name == "neurons"
    assert (found.without_errors is None) == (found.score_without_errors is None) == own


def test_all_active_features_are_all_of_the_answer_and_none_are_none(graph):
    everything = graph.faithfulness(graph.attribution.features)
    assert everything.n_kept == everything.n_active
    if graph.attribution.bases[0].name == "neurons":  # others may become active where features are taken out
        assert everything.score == pytest.approx(1, abs=1e-3)
    curve = everything.curve()
    assert list(curve["features"])[-1] == everything.n_active
    assert curve["share"].iloc[-1] == pytest.approx(everything.score, abs=1e-4)


def acts_on(graph, basis, tokens):
    """Activations of one layer's features on other tokens."""
    seen, model = {}, graph.attribution.frozen.model
    with torch.no_grad(), hooked(model, [(basis.hook_in, lambda x, hook: seen.update(x=x))]):
        model(torch.tensor(tokens))
    return basis.activations(seen["x"])


def test_features_are_brought_to_their_means_on_other_prompts(graph):
    tokens = [[2, 7, 1, 8, 2], [5, 5, 0, 9, 11]]
    means = [acts_on(graph, basis, tokens).mean(0) for basis in graph.attribution.bases]
    kept, found = kept_features(graph), graph.faithfulness(reference=mk.Prompts.from_tokens(tokens))
    assert found.kept == pytest.approx(left_by_hand(graph, kept, means=means), abs=1e-4)
    assert found.none == pytest.approx(left_by_hand(graph, [], means=means), abs=1e-4)
    assert abs(found.none - graph.faithfulness().none) > 1e-3


def test_prompts_of_other_lengths_give_one_mean_for_all_positions(graph):
    short, long = [2, 7, 1], [5, 5, 0, 9, 11, 4]
    means = [
        torch.cat([acts_on(graph, basis, [row])[0] for row in (short, long)]).mean(0, keepdim=True)
        for basis in graph.attribution.bases
    ]
    found = graph.faithfulness(reference=mk.Prompts.from_tokens([short, long]))
    assert found.none == pytest.approx(left_by_hand(graph, [], means=means), abs=1e-4)


def test_the_features_of_a_trained_graph_carry_its_answer_and_random_ones_do_not(addition):
    found = mk.trace(addition, "35+59=", check=False).faithfulness()
    assert found.score > 0.6  # measured 0.79
    assert found.control < 0.2  # measured -0.01
    assert found.share(found.others) < 0.2  # without them nothing is left: measured -0.21
    assert found.ceiling_without_errors > 0.95  # the transcoders can carry it: measured 0.99


def test_levels_say_what_a_graph_leaves_out():
    """Neurons far above zero are linear, so with norms and attention held nothing is left out, and else it is."""
    model = tiny_model(n_layers=3)
    for block in model.blocks:
        block.mlp.b_in.data += 50.0
    found = mk.trace(model, [1, 2, 3], neurons(model), node_threshold=0.3, check=False).levels().set_index("held")
    assert found.loc["attention and norms", "spearman"] > 0.999
    assert found.loc["nothing", "spearman"] < 0.9
    assert "attention, norms and errors" not in found.index


def test_in_small_steps_the_replacement_model_is_the_graph():
    graph = traced(
        tiny_model(n_layers=3, dtype=torch.float64), transcoders(tiny_model(n_layers=3, dtype=torch.float64))
    )
    found = graph.levels().set_index("held")
    assert found.loc["attention, norms and errors", "small step"] > 0.999
    assert found.loc["attention and norms", "small step"] < 0.9  # random dictionaries are not the MLPs


def test_what_cannot_be_measured_is_said(graph):
    with pytest.raises(ValueError, match="numbered from 0"):
        graph.faithfulness(root=5)
    with pytest.raises(ValueError, match="not held only"):
        graph.faithfulness(freeze=("mlps",))
    bare = mk.trace(tiny_model(attn_only=True), [1, 2, 3], check=False)
    with pytest.raises(ValueError, match="no feature is active"):
        bare.faithfulness()


def test_an_error_halfway_leaves_no_hook(graph):
    model = graph.attribution.frozen.model

    def stop(module, inputs, output):
        raise KeyboardInterrupt

    handle = model.blocks[1].mlp.hook_post.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        graph.faithfulness()
    handle.remove()
    assert not any(point._forward_hooks for point in model.hook_dict.values())
    assert not any(block.mlp._forward_hooks for block in model.blocks)

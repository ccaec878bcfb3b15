"""Predicted against measured: exact where it must be, better than its control where it is an approximation."""

import copy
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mechkit as mk
from mechkit.dictionaries import neurons
from mechkit.graphs.meaning.supernodes import check_supernodes, supernodes
from mechkit.graphs.truth.check import check_graph, same_sign, spearman, target_slopes
from mechkit.graphs.truth.exact import exact_error
from mechkit.zoo.addition import unseen_sums
from tests.conftest import tiny_model
from tests.graphs.brute import random_transcoders, traced

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def graphs(addition):
    sums = random.Random(0).sample(unseen_sums(), 2)
    return [mk.trace(addition, f"{a}+{b}=") for a, b in sums]


@pytest.fixture(scope="module")
def sums():
    """What the script prints of twenty unseen sums, run as a user runs it."""
    command = [sys.executable, "-W", "ignore", "scripts/graph_truth.py", "--prompts", "20", "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout)


def test_rows_of_unseen_sums_add_up_to_their_preactivations(sums):
    assert sums["right"] >= 19
    assert sums["row_error"] < 1e-5  # required: 1e-4; measured 7e-7


def test_all_frozen_every_target_moves_as_its_column_says(sums):
    assert sums["features"] > 200
    assert sums["exact_error"] < 1e-5  # required: 1e-4; measured 4e-7


def test_the_graph_predicts_interventions_and_its_control_does_not(sums):
    rows = {(row["level"], row["by"]): row for row in sums["levels"]}
    for level, least in (("ii: attention and norms frozen", 0.8), ("iii: nothing frozen", 0.5)):
        graph, control = rows[level, "graph"], rows[level, "control"]
        assert graph["spearman"] > least  # measured 0.90 and 0.64
        assert graph["spearman L0"] > control["spearman L0"] + 0.3  # within a layer the control is a null
        assert graph["spearman L1"] > control["spearman L1"] + 0.3
        assert graph["same sign"] > 0.9


def test_suppressing_a_feature_is_taking_its_decoder_out_of_the_mlp(graphs):
    graph = graphs[0]
    model, prompts = graph.attribution.frozen.model, graph.attribution.frozen.prompts
    node, basis = graph.check.nodes[0], graph.attribution.bases[graph.check.nodes[0].layer]

    def suppress(x, hook):
        x = x.clone()
        x[:, node.pos] -= node.value * basis.W_dec[node.index]
        return x

    hook = [(f"blocks.{node.layer}.hook_mlp_out", suppress)]
    with torch.no_grad():
        after = model.run_with_hooks(prompts.tokens, fwd_hooks=hook)[0, -1]
        before = model(prompts.tokens)[0, -1]
    answer = graph.logits[0].index
    change = (after[answer] - after.mean()) - (before[answer] - before.mean())
    assert float(graph.check.measured[0]) == pytest.approx(float(change), abs=1e-5)  # float32


def test_the_gradient_column_is_the_models_own_gradient(graphs):
    graph = graphs[0]
    model, prompts = graph.attribution.frozen.model, graph.attribution.frozen.prompts
    node, basis = graph.check.nodes[0], graph.attribution.bases[graph.check.nodes[0].layer]
    answer, step = graph.logits[0].index, 1e-6

    def nudge(x, hook):
        x = x.clone()
        x[:, node.pos] -= step * node.value * basis.W_dec[node.index]
        return x

    with torch.no_grad():
        double = copy.deepcopy(model).to(torch.float64)
        moved = double.run_with_hooks(prompts.tokens, fwd_hooks=[(f"blocks.{node.layer}.hook_mlp_out", nudge)])[0, -1]
        still = double(prompts.tokens)[0, -1]
    slope = ((moved[answer] - moved.mean()) - (still[answer] - still.mean())) / step
    assert float(graph.check.gradient[0]) == pytest.approx(
        float(slope), rel=1e-3, abs=1e-4
    )  # a finite step, float32 against float64


def test_without_nonlinearity_the_prediction_is_exact():
    """Neurons far above zero make every MLP linear: with norms and attention held, the graph is the model."""
    model = tiny_model(n_layers=3)
    for block in model.blocks:
        block.mlp.b_in.data += 50.0
    graph = mk.trace(model, [1, 2, 3], neurons(model), node_threshold=0.3)
    assert len(graph.check.nodes) > 10
    error = (graph.check.predicted - graph.check.frozen).abs() / graph.check.frozen.abs().max()
    assert float(error.max()) < 1e-3  # float32 with activations near 50


def test_dictionaries_of_noise_do_not_predict_interventions():
    model = tiny_model(n_layers=3)
    summary = mk.trace(model, [1, 2, 3, 4], random_transcoders(model)).check.summary().set_index(["level", "by"])
    by_noise, by_gradient = (summary.loc[("iii: nothing frozen", by), "spearman L0"] for by in ("graph", "gradient"))
    assert by_noise < by_gradient - 0.2


@pytest.mark.parametrize("bos", [False, True], ids=["no bos", "bos"])
def test_skip_connections_move_with_their_input_at_the_exact_level(bos):
    model = tiny_model(n_layers=3)
    graph = traced(model, random_transcoders(model, skip=True), bos=bos)
    chosen = [i for i in graph.kept_sources if graph.sources[i].kind == "feature"][:20]
    assert exact_error(graph, [[i] for i in chosen]) < 1e-5  # float32


def test_soft_capped_logits_are_compared_before_the_cap():
    model = tiny_model(n_layers=2, output_logits_soft_cap=3.0)
    for block in model.blocks:
        block.mlp.b_in.data += 50.0  # neurons far above zero: every MLP is linear, so prediction is exact
    check = mk.trace(model, [1, 2, 3], neurons(model), node_threshold=0.3).check
    assert float((check.predicted - check.frozen).abs().max() / check.frozen.abs().max()) < 1e-2  # atanh near the cap


@pytest.mark.parametrize("norm", ["LN", None])
def test_a_model_in_float64_is_checked_in_float64(norm):
    model = tiny_model(n_layers=2, normalization_type=norm, dtype=torch.float64)
    graph = mk.trace(model, [1, 2, 3], neurons(model))
    assert graph.matrix().dtype == torch.float64
    assert graph.check.exact_error < 1e-12


def test_scores_of_dictionaries_do_not_apply_to_neurons():
    model = tiny_model()
    scores = mk.trace(model, [1, 2, 3], neurons(model)).scores
    assert scores["replacement"] is scores["completeness"] is None
    assert scores["intervention"] is not None


def test_too_few_features_have_no_agreement():
    model = tiny_model(attn_only=True)
    assert mk.trace(model, [1, 2, 3]).scores["intervention"] is None


def test_a_check_changes_nothing_and_is_the_same_twice(graphs):
    graph = graphs[1]
    before = {name: value.clone() for name, value in graph.attribution.frozen.model.state_dict().items()}
    again = check_graph(graph)
    for name in ("predicted", "direct", "gradient", "control", "frozen", "measured"):
        assert torch.equal(getattr(again, name), getattr(graph.check, name)), name
    after = graph.attribution.frozen.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_supernode_predicts_the_sum_of_its_features_and_is_suppressed_whole(graphs):
    graph = graphs[0]
    groups = supernodes(graph)
    assert sum(map(len, groups.values())) == len(graph.attribution.features)
    check = check_supernodes(graph)[0]
    nodes = groups[check.name]
    effects = graph.weighted.effects(graph.weighted.n_features, target_slopes(graph))
    assert check.predicted == pytest.approx(-sum(float(effects[graph.column_of(node)]) for node in nodes), rel=1e-4)
    model, prompts = graph.attribution.frozen.model, graph.attribution.frozen.prompts
    written = sum(node.value * graph.attribution.bases[node.layer].W_dec[node.index] for node in nodes)
    edit = mk.Add(f"L{nodes[0].layer}.mlp_out@{nodes[0].pos}", -written)
    with torch.no_grad():
        after = model.run_with_hooks(prompts.tokens, fwd_hooks=edit.hooks(model))[0, -1]
        before = model(prompts.tokens)[0, -1]
    answer = graph.logits[0].index
    change = (after[answer] - after.mean()) - (before[answer] - before.mean())
    assert check.measured == pytest.approx(float(change), abs=1e-4)  # float32
    assert check.answer == model.tokenizer.decode([int(after.argmax())])


def test_a_token_that_occurs_twice_has_a_supernode_at_each_place(addition):
    from mechkit.graphs.meaning.meanings import add_operand_meanings

    graph = mk.trace(addition, "99+99=", check=False)
    add_operand_meanings(graph, "99+99=")
    places = {name: {node.pos for node in nodes} for name, nodes in supernodes(graph).items()}
    assert all(len(positions) == 1 for positions in places.values())
    assert {"L0 operand at 99 (0)", "L0 operand at 99 (2)"} <= set(places)


def test_spearman_and_signs_on_hand_values():
    a = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(a, a**3) == pytest.approx(1)
    assert spearman(-a, a) == pytest.approx(-1)
    assert spearman(a[:2], a[:2]) != spearman(a[:2], a[:2])  # NaN: two points have no rank correlation
    assert same_sign(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 2.0])) == 0.5

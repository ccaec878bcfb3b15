"""Influences, effects, scores and pruning against their definitions by dense linear algebra."""

import pytest
import torch

import mechkit as mk
from mechkit.graphs.truth.check import target_slopes
from tests.conftest import tiny_model
from tests.graphs.brute import random_transcoders


@pytest.fixture(scope="module")
def graph():
    model = tiny_model(n_layers=3)
    return mk.trace(model, [1, 2, 3, 4], random_transcoders(model), check=False, max_logits=3)


def square(matrix, rows):
    """The rows as a square matrix over all nodes: sources, then logits."""
    n_sources, n_logits = rows.shape[1], len(matrix.targets) - matrix.n_features
    full = torch.zeros(n_sources + n_logits, n_sources + n_logits, dtype=torch.float64)
    full[: matrix.n_features, :n_sources] = rows[: matrix.n_features].double()
    full[n_sources:, :n_sources] = rows[matrix.n_features :].double()
    return full


def all_paths(matrix, rows, start):
    """Weight of each source over all paths, summed power by power."""
    full = square(matrix, rows)
    total, step = torch.zeros(len(full), dtype=torch.float64), torch.zeros(len(full), dtype=torch.float64)
    step[-len(start) :] = start.double()
    for _ in range(8):  # three layers of features: longer chains do not exist
        step = step @ full
        total += step
    assert float(step.abs().max()) == 0
    return total[: rows.shape[1]]


def test_one_sweep_equals_the_sum_over_all_paths(graph):
    matrix = graph.weighted
    expected = all_paths(matrix, matrix.shares, matrix.weights[matrix.n_features :])
    torch.testing.assert_close(matrix.influence.double(), expected, rtol=1e-5, atol=1e-7)  # float32 against float64


def test_influence_that_reaches_the_bottom_is_all_of_it(graph):
    matrix = graph.weighted
    bottom = matrix.influence[matrix.of_kind("token", "position", "error")].sum()
    assert float(bottom) == pytest.approx(1, abs=1e-5)  # float32 sum of some hundred shares


def test_effects_equal_the_solution_of_the_linear_system(graph):
    matrix = graph.weighted
    sizes = torch.tensor([node.value for node in matrix.targets[: matrix.n_features]])
    n = matrix.n_features
    between = (matrix.values[:n, :n] / sizes[:, None]).double()
    onto_answer = matrix.values[n].double()
    expected = onto_answer + torch.linalg.solve(torch.eye(n) - between.T, onto_answer[:n]) @ (
        matrix.values[:n].double() / sizes[:, None]
    )
    found = matrix.effects(n, target_slopes(graph)).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # float32 against float64


def test_scores_follow_their_definitions(graph):
    matrix = graph.weighted
    errors = [i for i, node in enumerate(matrix.sources) if node.kind == "error"]
    inputs = [i for i, node in enumerate(matrix.sources) if node.kind in ("token", "position")]
    flow = matrix.influence
    assert graph.scores["replacement"] == pytest.approx(float(flow[inputs].sum() / flow[[*inputs, *errors]].sum()))
    weights = torch.cat([flow[: matrix.n_features], matrix.weights[matrix.n_features :]])
    explained = torch.stack([1 - row[errors].sum() for row in matrix.shares])
    assert graph.scores["completeness"] == pytest.approx(float((weights * explained).sum() / weights.sum()))
    assert 0 < graph.scores["replacement"] < 1
    assert 0 < graph.scores["completeness"] < 1


def test_biases_have_no_influence(graph):
    assert float(graph.weighted.influence[graph.weighted.of_kind("bias")].abs().max()) == 0


@pytest.mark.parametrize("threshold", [0.3, 0.8, 1.0])
def test_pruning_keeps_the_smallest_set_that_holds_the_threshold(graph, threshold):
    matrix = graph.weighted
    kept = matrix.prune(threshold, 1.0)
    flow = matrix.influence * matrix.of_kind("feature", "error")
    held = flow[kept.nodes].sum() / flow.sum()
    chosen = kept.nodes & matrix.of_kind("feature", "error")
    smallest = flow[chosen].min()
    assert float(held) >= threshold - 1e-5
    assert threshold == 1.0 or float((flow[chosen].sum() - smallest) / flow.sum()) < threshold


def test_kept_edges_join_kept_nodes_and_every_kept_node_reaches_a_logit(graph):
    matrix, kept = graph.weighted, graph.weighted.prune(0.5, 0.7)
    rows = torch.cat([kept.nodes[: matrix.n_features], torch.ones(len(graph.logits), dtype=torch.bool)])
    assert not bool(kept.edges[~rows].any())
    assert not bool(kept.edges[:, ~kept.nodes].any())
    assert bool(kept.edges[:, kept.nodes].any(0).all())
    assert bool(kept.edges[: matrix.n_features][kept.nodes[: matrix.n_features]].any(1).all())
    assert 0 < int(kept.edges.sum()) < int(graph.weighted.prune(0.5, 1.0).edges.sum())


def test_thresholds_outside_zero_to_one_are_refused(graph):
    with pytest.raises(ValueError, match="node_threshold is 0"):
        graph.weighted.prune(0.0, 0.9)
    with pytest.raises(ValueError, match=r"edge_threshold is 1\.5"):
        graph.weighted.prune(0.9, 1.5)


def test_edges_are_labelled_rows_with_the_matrix_weights(graph):
    top = graph.edges.top(5)
    labels = {str(node.site): i for i, node in enumerate(graph.sources)}
    rows = {str(node.site): i for i, node in enumerate(graph.targets)}
    for edge, score in zip(top.edges, top.scores[:, 0], strict=True):
        assert score == graph.matrix()[rows[str(edge.receiver)], labels[str(edge.sender)]]


def test_node_ids_and_sites_are_unique(graph):
    assert len({node.id for node in graph.nodes}) == len(graph.nodes)
    assert len({str(node.site) for node in graph.nodes}) == len(graph.nodes)

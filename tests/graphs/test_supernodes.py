"""Supernodes: planted duplicates are found and nothing else is; edits; edges between them are exact sums."""

import dataclasses

import numpy as np
import pytest
import torch

import mechkit as mk
from mechkit.dictionaries import neurons
from mechkit.graphs.graph import Meaning
from mechkit.graphs.meaning import pathways as walk
from mechkit.graphs.meaning.supernodes import kept_features, partition, supernodes
from mechkit.graphs.truth.check import target_slopes
from tests.conftest import tiny_model
from tests.graphs.frozen_runs import transcoders

PROMPT = [3, 1, 4]
SAME, SAME_TOO = (0, 1, 2), (3, 4)
"""Features of layer 0 that read and write along one direction each."""
WRITES_ELSE, READS_ELSE = 5, 6
"""Features that share only what the first three read, or only what they write."""


def planted(seed=5):
    """A random model of width 64 with transcoders, some features of layer 0 alike; features 0 to 6 fire everywhere."""
    model = tiny_model(d_model=64, d_head=32, n_layers=3, d_vocab=60)
    first, *rest = transcoders(model, seed=seed)
    W_enc, W_dec, b_enc = first.W_enc.clone(), first.W_dec.clone(), first.b_enc.clone()
    for size, group in ((1.0, SAME), (0.7, SAME_TOO)):
        for i, member in enumerate(group):
            W_enc[:, member], b_enc[member] = W_enc[:, group[0]], 8.0
            W_dec[member] = size * (1 + 0.5 * i) * W_dec[group[0]]
    W_enc[:, WRITES_ELSE], W_dec[READS_ELSE] = W_enc[:, 0], W_dec[0]
    b_enc[[WRITES_ELSE, READS_ELSE]] = 8.0
    return model, [dataclasses.replace(first, W_enc=W_enc, W_dec=W_dec, b_enc=b_enc), *rest]


@pytest.fixture(scope="module")
def known():
    model, bases = planted()
    return mk.trace(model, PROMPT, bases, check=False, node_threshold=1.0, edge_threshold=1.0)


@pytest.fixture
def graph(known):
    """The same graph, not yet edited."""
    known.edited, known.labels, known.meanings = None, {}, {}
    return known


def members(groups):
    return sorted(sorted((node.layer, node.index, node.pos) for node in nodes) for nodes in groups.values())


def test_features_with_the_same_edges_are_merged_and_no_others(graph):
    graph.regroup("edges")
    wanted = [[(0, i, pos) for i in group] for pos in range(3) for group in (SAME, SAME_TOO)]
    assert members(graph.supernodes) == sorted(wanted)


def test_features_that_write_the_same_share_a_meaning_whatever_they_read(graph):
    graph.regroup("meaning", threshold=0.8)
    wanted = [[(0, i, pos) for i in group] for pos in range(3) for group in ((*SAME, READS_ELSE), SAME_TOO)]
    assert members(graph.supernodes) == sorted(wanted)


def test_automatic_supernodes_are_by_meaning_then_by_edges(graph):
    inside = [node.id for nodes in graph.supernodes.values() for node in nodes]
    assert len(inside) == len(set(inside))
    found = {frozenset(one) for one in members(graph.supernodes)}
    for pos in range(3):
        assert any({(0, i, pos) for i in (*SAME, READS_ELSE)} <= one for one in found)
        assert not any({(0, 0, pos), (0, WRITES_ELSE, pos)} <= one for one in found)


@pytest.mark.parametrize("seed", [1, 4])
def test_random_features_stand_for_themselves(build, seed):
    model = build(d_model=64, d_head=32, n_layers=3, d_vocab=60)
    graph = mk.trace(model, PROMPT, transcoders(model, seed=seed), check=False, node_threshold=1.0)
    n = len(kept_features(graph))
    assert n > 80
    for by in ("edges", "meaning"):
        graph.regroup(by)
        assert sum(map(len, graph.supernodes.values())) <= 0.05 * n, by  # measured: 0 to 4 of 82 to 97


def test_groups_do_not_depend_on_the_order_of_features(graph):
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    model, bases = planted()
    first = bases[0]
    moved = dataclasses.replace(
        first, W_enc=first.W_enc[:, order], b_enc=first.b_enc[order], W_dec=first.W_dec[order]
    )  # fmt: skip
    other = mk.trace(model, PROMPT, [moved, *bases[1:]], check=False, node_threshold=1.0, edge_threshold=1.0)
    for by in ("edges", "meaning"):
        graph.regroup(by)
        other.regroup(by)
        back = [
            sorted((layer, int(order[i]) if layer == 0 else i, pos) for layer, i, pos in group)
            for group in members(other.supernodes)
        ]
        assert sorted(back) == members(graph.supernodes), by


def test_two_features_of_a_supernode_are_at_most_a_layer_apart_and_at_one_position(graph):
    graph.regroup("meaning", threshold=0.05)
    spans = [{node.layer for node in nodes} for nodes in graph.supernodes.values()]
    assert max(map(len, spans)) == 2  # a low threshold joins layers
    assert all(max(span) - min(span) <= 1 for span in spans)
    assert all(len({node.pos for node in nodes}) == 1 for nodes in graph.supernodes.values())


def test_classes_are_supernodes_of_one_layer_and_label_beats_likeness(graph):
    first, second = [node for node in kept_features(graph) if node.layer == 0 and node.pos == 2][:2]
    third = next(node for node in kept_features(graph) if node.layer == 1 and node.pos == 2)
    graph.meanings = {node.id: Meaning("any", "sum", 1.0, "sum") for node in (first, second, third)}
    place = graph.meta["tokens"][2]
    assert [node.id for node in graph.supernodes[f"L0 sum at {place}"]] == [first.id, second.id]
    assert [node.id for node in graph.supernodes[f"L1 sum at {place}"]] == [third.id]
    graph.label(second, "mine")
    assert second in graph.supernodes[f"L0 sum at {place}"]  # a label of one node is no group
    graph.label(third, "mine")
    assert graph.supernodes[f"L0–L1 mine at {place}"] == [second, third]


def test_groups_are_edited_by_node_id_or_site(graph):
    automatic = dict(graph.supernodes)
    one, two, three = kept_features(graph)[:3]
    graph.group("mine", [one, two.id, str(three.site)])
    assert graph.supernodes["mine"] == [one, two, three]
    assert sum(one in nodes for nodes in graph.supernodes.values()) == 1
    graph.group("other", two)
    assert (graph.supernodes["mine"], graph.supernodes["other"]) == ([one, three], [two])
    graph.group("mine", [three.id])
    assert graph.supernodes["mine"] == [three]
    assert one not in [node for nodes in graph.supernodes.values() for node in nodes]
    graph.ungroup("mine")
    assert "mine" not in graph.supernodes
    graph.group("inputs", ["E_3_0", "E_1_1"])
    assert [node.kind for node in graph.supernodes["inputs"]] == ["token", "token"]
    graph.regroup("edges")
    assert "inputs" not in graph.supernodes
    graph.edited = None
    assert members(graph.supernodes) == members(automatic)


def test_edits_that_make_no_sense_are_refused(graph):
    node, answer = kept_features(graph)[0], graph.logits[0]
    with pytest.raises(ValueError, match="no node '9_9_9' in this graph; nodes are called by id"):
        graph.group("a", ["9_9_9"])
    with pytest.raises(ValueError, match="of kinds feature, token; put features with features"):
        graph.group("a", [node, "E_3_0"])
    with pytest.raises(ValueError, match="leave what the graph explains alone"):
        graph.group("a", [answer])
    with pytest.raises(ValueError, match="'' with 1 nodes; it needs a name and at least one node"):
        graph.group("", [node])
    with pytest.raises(ValueError, match="no supernode 'a'; there are"):
        graph.ungroup("a")
    with pytest.raises(ValueError, match="by is 'colour'; supernodes are made by 'meaning' or by 'edges'"):
        graph.regroup("colour")
    with pytest.raises(ValueError, match=r"threshold is 1.5; it is a likeness"):
        graph.regroup("edges", threshold=1.5)
    with pytest.raises(ValueError, match="unit is 'volt'"):
        graph.supergraph("volt")
    assert graph.edited is None


def test_a_pruned_node_is_named_as_such(known):
    graph = mk.trace(known.attribution.frozen.model, PROMPT, known.attribution.bases, check=False, node_threshold=0.3)
    gone = next(node for i, node in enumerate(graph.sources) if not graph.kept.nodes[i] and node.kind == "feature")
    with pytest.raises(ValueError, match=f"node '{gone.id}' was pruned away; trace with a higher node_threshold"):
        graph.label(gone, "text")


# --- edges between supernodes


def looped(graph, supergraph, gains):
    """Edges between groups, summed one entry of the matrix at a time."""
    dense, gains = graph.weighted.values.double().tolist(), gains.tolist()
    of_source = {node.id: name for name in supergraph.sources for node in supergraph.members[name]}
    of_target = {node.id: name for name in supergraph.targets for node in supergraph.members[name]}
    found = {}
    for t, target in enumerate(graph.weighted.targets):
        for s, source in enumerate(graph.weighted.sources):
            key = of_source[source.id], of_target[target.id]
            found[key] = found.get(key, 0.0) + dense[t][s] * gains[t]
    return found


@pytest.mark.parametrize("unit", ["logit", "pre-activation"])
def test_edges_between_groups_are_sums_of_the_matrix(graph, unit):
    graph.group("mixed", [node for node in kept_features(graph) if node.pos == 1 and node.index in (*SAME, 7, 8)])
    made = graph.supergraph(unit)
    effects, n = graph.weighted.effects(graph.weighted.n_features, target_slopes(graph)), graph.weighted.n_features
    gains = torch.ones(len(graph.weighted.targets))
    if unit == "logit":
        gains = torch.tensor([float(effects[graph.column_of(t)]) / t.value for t in graph.weighted.targets[:n]])
        gains = torch.cat([gains, torch.eye(len(graph.roots))[0]])
    wanted = looped(graph, made, gains)
    frame = made.matrix()
    assert set(made.targets) | set(made.sources) >= {"mixed", "errors", "biases"}
    scale = np.abs(made.weights).max()
    for (source, target), value in wanted.items():
        assert frame.loc[target, source] == pytest.approx(value, rel=1e-4, abs=1e-5 * scale), (source, target)


@pytest.mark.parametrize("grouped", [True, False])
def test_what_leaves_and_reaches_a_group_is_its_effect_on_the_answer(graph, grouped):
    if not grouped:
        graph.edited = {}
    made = graph.supergraph()
    effects = graph.weighted.effects(graph.weighted.n_features, target_slopes(graph))
    scale = float(effects.abs().max())
    for i, name in enumerate(made.sources):
        nodes = made.members[name]
        effect = float(effects[[graph.column_of(node) for node in nodes]].sum())
        assert made.weights[:, i].sum() == pytest.approx(effect, abs=1e-4 * scale)
        if nodes[0].kind == "feature":
            assert made.weights[made.targets.index(name)].sum() == pytest.approx(effect, abs=1e-4 * scale)
    answer = graph.logits[0]
    into = made.weights[made.targets.index(f"logit {answer.name}")].sum()
    assert into == pytest.approx(answer.preactivation, abs=1e-4 * scale)


def test_an_edge_to_a_logit_is_what_a_frozen_ablation_takes_from_it(graph):
    """All of a group's features taken out of the model run, patterns, scales and MLP outputs held."""
    graph.group("mine", [node for node in kept_features(graph) if node.layer == 0 and node.pos == 2][:6])
    model, tokens = graph.attribution.frozen.model, graph.attribution.frozen.prompts.tokens
    held = {
        name: value
        for name, value in model.run_with_cache(tokens)[1].items()
        if name.endswith(("scale", "pattern", "mlp_out"))
    }
    row = sum(node.value * graph.attribution.bases[0].W_dec[node.index] for node in graph.supernodes["mine"])
    hooks = [(name, lambda x, hook: held[hook.name].clone()) for name in held]

    def without(x, hook):
        x[0, 2] -= row
        return x

    with torch.no_grad():
        change = (model(tokens) - model.run_with_hooks(tokens, fwd_hooks=[*hooks, ("blocks.0.hook_mlp_out", without)]))[
            0, -1
        ]
    frame = graph.supergraph("pre-activation").matrix()
    for root in graph.logits:
        assert frame.loc[f"logit {root.name}", "mine"] == pytest.approx(
            float(change[root.index] - change.mean()), abs=1e-4
        )


def test_a_supergraph_prints_and_has_frames(graph):
    made = graph.supergraph()
    frame = made.frame()
    assert list(frame.columns) == ["source", "target", "weight", "n_sources", "n_targets"]
    assert frame["weight"].abs().is_monotonic_decreasing
    assert len(made.frame(3)) == 3
    shown = repr(made).splitlines()
    first = next(row for row in frame.itertuples() if "biases" not in (row.source, row.target))
    assert f"{first.weight:+.2f}  {first.source} → {first.target}" in shown[0]
    assert shown[-1] == "unit: logit"
    assert shown[-2] == f"({len(frame) - 12} more edges, among them all of biases and pruned features)"


# --- in pathways and checks


def test_every_source_is_in_exactly_one_group(graph):
    for edit in (
        lambda: None,
        lambda: graph.group("two", [node for node in kept_features(graph) if node.pos == 1][::4]),
    ):
        edit()
        columns = sorted(i for group in partition(graph).values() for i in group)
        assert columns == list(range(len(graph.weighted.sources)))
    assert sum(map(len, supernodes(graph).values())) == len(graph.attribution.features)


@pytest.mark.parametrize("joined", [False, True])
def test_all_pathways_sum_to_one_through_supernodes_of_one_layer_or_two(monkeypatch, build, joined):
    model = build()
    graph = mk.trace(model, PROMPT, neurons(model), check=False)
    monkeypatch.setattr(walk, "SMALLEST", 1e-12)
    if joined:
        low, high = ([node for node in kept_features(graph) if (node.layer, node.pos) == (at, 2)] for at in (0, 1))
        graph.group("joined", [*low[:3], *high[:3]])
    paths = graph.pathways(10**6)
    assert sum(path.share for path in paths) == pytest.approx(1, abs=1e-5)
    if joined:
        assert all(path.supernodes.count("joined") <= 1 for path in paths)
        through = [path for path in paths if "joined" in path.supernodes]
        assert 0 < sum(path.share for path in through) < 1
        assert any("joined (6 features)" in path.text for path in through)

"""Many prompts traced together against the same prompts traced one by one, and averages against plain loops."""

import json
import random

import numpy as np
import pandas as pd
import pytest
import torch

import mechkit as mk
from mechkit.dictionaries import neurons
from mechkit.graphs import many
from mechkit.zoo.addition import unseen_sums

N = 16
SMALL, LARGE = (  # sums of ones digits that never carry, and always do
    [(a, b) for a, b in random.Random(3).sample(unseen_sums(), 1000) if a % 10 in digits and b % 10 in digits][: N // 2]
    for digits in ((1, 2, 3), (7, 8, 9))
)
SUMS = [pair for pairs in zip(SMALL, LARGE, strict=True) for pair in pairs]
TEXTS = [f"{a}+{b}=" for a, b in SUMS]
LABELS = ["carry" if a % 10 + b % 10 > 9 else "no carry" for a, b in SUMS]


@pytest.fixture(scope="module")
def graphs(addition):
    return mk.trace_many(addition, TEXTS, by=LABELS)


@pytest.fixture(scope="module")
def singles(addition):
    return [mk.trace(addition, text, check=False) for text in TEXTS[:8]]


def features_of(graph):
    """Activation, influence and whether it is kept, by place, of one graph's features."""
    kept = set(graph.kept_sources)
    return {
        str(node.site): (node.value, float(graph.weighted.influence[i]), i in kept)
        for i, node in enumerate(graph.sources)
        if node.kind == "feature"
    }


def edges_of(graph):
    """Weight and influence, by sender and receiver, of one graph's kept edges; the roots by rank."""
    places, weights, through = graph.kept_edges
    names = {i: "answer" if i == 0 else f"logit {i + 1}" for i in range(len(graph.roots))}
    n = graph.weighted.n_features
    return {
        (str(graph.sources[s].site), names[t - n] if t >= n else str(graph.weighted.targets[t].site)): (
            float(w),
            float(i),
        )
        for (t, s), w, i in zip(places.tolist(), weights, through, strict=True)
    }


def test_each_graph_is_that_of_trace(graphs, singles):
    assert len(graphs) == len(list(graphs)) == N
    for slim, single in zip(graphs, singles, strict=False):
        found = slim.nodes[slim.nodes["node"].str.contains("#")].set_index("node")
        expected = features_of(single)
        assert set(found.index) == set(expected)
        for name, (value, influence, kept) in expected.items():
            assert found.loc[name, "value"] == pytest.approx(value, rel=1e-4)  # a batch's matmuls round otherwise
            assert found.loc[name, "influence"] == pytest.approx(influence, rel=1e-3, abs=1e-6)
            assert found.loc[name, "kept"] == kept
        edges = {(row.sender, row.receiver): (row.weight, row.influence) for row in slim.edges.itertuples()}
        expected = edges_of(single)
        assert len(edges.keys() ^ expected.keys()) <= 1  # an edge at the threshold may fall on its other side
        for pair in edges.keys() & expected.keys():
            assert edges[pair] == pytest.approx(expected[pair], rel=1e-3, abs=1e-5)
        assert slim.prompt["answer"] == single.logits[0].name
        assert slim.prompt["completeness"] == pytest.approx(single.scores["completeness"], abs=1e-5)


@pytest.mark.parametrize("label", [None, "carry"])
def test_features_are_averages_over_prompts(graphs, label):
    chosen = [i for i in range(N) if label is None or LABELS[i] == label]
    rows = {}
    for i in chosen:
        for row in graphs[i].nodes.itertuples():
            if "#" in row.node:
                rows.setdefault(row.node, []).append(row)
    found = graphs.features(label).set_index("node")
    assert set(found.index) == set(rows)
    for name, some in rows.items():
        where = np.array([row.influence for row in some], float)
        over_all = np.concatenate([where, np.zeros(len(chosen) - len(where))])
        got = found.loc[name]
        assert (got["n"], got["active"]) == (len(some), len(some) / len(chosen))
        assert got["kept"] == pytest.approx(sum(row.kept for row in some) / len(chosen))
        assert got["activation"] == pytest.approx(np.mean([row.value for row in some]), rel=1e-6)
        assert got["influence"] == pytest.approx(over_all.mean(), rel=1e-6)
        assert got["influence_where"] == pytest.approx(where.mean(), rel=1e-6)
        assert got["influence_se"] == pytest.approx(over_all.std(ddof=1) / len(chosen) ** 0.5, rel=1e-6)
        if len(some) > 1:
            assert got["influence_where_se"] == pytest.approx(where.std(ddof=1) / len(some) ** 0.5, rel=1e-4)
        else:
            assert np.isnan(got["influence_where_se"])
    assert found["influence"].is_monotonic_decreasing


def test_edges_are_averages_where_present_and_over_all(graphs):
    rows = {}
    for graph in graphs:
        for row in graph.edges.itertuples():
            rows.setdefault((row.sender, row.receiver), []).append(row)
    found = graphs.edges().set_index(["sender", "receiver"])
    assert set(found.index) == set(rows)
    for pair, some in rows.items():
        got = found.loc[pair]
        assert (got["n"], got["share"]) == (len(some), len(some) / N)
        for name in ("weight", "influence"):
            where = np.array([getattr(row, name) for row in some], float)
            over_all = np.concatenate([where, np.zeros(N - len(where))])
            assert got[name] == pytest.approx(where.mean(), rel=1e-5)
            assert got[f"{name}_all"] == pytest.approx(over_all.mean(), rel=1e-5)
            assert got[f"{name}_all_se"] == pytest.approx(over_all.std(ddof=1) / N**0.5, rel=1e-4)
            if len(where) > 1:
                assert got[f"{name}_se"] == pytest.approx(where.std(ddof=1) / len(where) ** 0.5, rel=1e-3)


def test_common_features_are_kept_in_that_share(graphs):
    found = graphs.common(0.3, "carry")
    everything = graphs.features("carry")
    assert 0 < len(found) < len(everything)
    assert set(found["node"]) == set(everything["node"][everything["kept"] >= 0.3])


def test_sums_with_a_carry_differ_from_those_without(graphs):
    found = graphs.compare("carry", "no carry")
    best = found.iloc[0]
    assert best["p"] <= 0.01
    assert found["z"].abs().is_monotonic_decreasing
    for label, side in (("carry", "a"), ("no carry", "b")):
        chosen = [i for i in range(N) if LABELS[i] == label]
        values = [graphs[i].nodes.set_index("node")["influence"].get(best["node"], 0.0) for i in chosen]
        assert best[f"influence_{side}"] == pytest.approx(np.mean(values), rel=1e-5)
        assert best[f"share_{side}"] == np.mean([value > 0 for value in values])
        errors = np.std(values, ddof=1) / len(chosen) ** 0.5
        best[f"error_{side}"] = errors
    assert best["se"] == pytest.approx(np.hypot(best["error_a"], best["error_b"]), rel=1e-4)
    assert best["z"] == pytest.approx((best["influence_a"] - best["influence_b"]) / best["se"])
    edges = graphs.compare("carry", "no carry", "edges")
    assert edges["p"].min() <= 0.01
    assert edges["difference"].to_numpy() == pytest.approx((edges["weight_a"] - edges["weight_b"]).to_numpy())


def test_classes_that_mean_nothing_do_not_differ(graphs):
    smallest = []
    for seed in range(20):
        labels = LABELS.copy()
        random.Random(seed).shuffle(labels)
        smallest.append(graphs.by(labels).compare("carry", "no carry", permutations=60, seed=seed)["p"].min())
    assert sum(p <= 0.1 for p in smallest) <= 6  # 2 of 20 are expected; more than 6 happen once in 400 times
    assert min(smallest) >= 1 / 61


def test_prompts_of_unequal_lengths_are_aligned_from_the_end(addition):
    texts = ["last 94=", "35+59=", "even 12=", "12+34="]
    graphs = mk.trace_many(addition, texts)
    assert graphs.align == "end"
    assert graphs.frame()["n_tokens"].tolist() == [3, 4, 3, 4]
    by_hand = {}
    for text in texts:
        single = mk.trace(addition, text, check=False)
        for node in single.sources:
            if node.kind == "feature":
                place = node.layer, node.pos - single.attribution.frozen.n_positions, node.index
                by_hand[place] = by_hand.get(place, 0) + 1
    found = graphs.features()
    counted = {(row["layer"], row["pos"], row["index"]): row["n"] for _, row in found.iterrows()}
    assert counted == by_hand
    assert max(counted.values()) > 1
    anywhere = graphs.aligned("any").features()
    assert anywhere["pos"].isna().all()
    assert anywhere["influence"].sum() == pytest.approx(found["influence"].sum())  # moved together, none lost
    assert 1 < anywhere["n"].max() <= 4
    starts = graphs.aligned("start").nodes()
    assert starts[starts["node"] == "embed@0"]["n"].tolist() == [4]


def test_one_prompt_has_means_and_no_errors(addition):
    graphs = mk.trace_many(addition, ["35+59="])
    single = mk.trace(addition, "35+59=", check=False)
    found = graphs.features()
    assert len(found) == len(single.attribution.features)
    assert found["influence_se"].isna().all()
    assert graphs.edges()["weight"].to_numpy() == pytest.approx(graphs.edges()["weight_all"].to_numpy())


def test_a_generator_token_ids_and_prompts_give_the_same(addition, graphs):
    rows = addition.to_tokens(TEXTS[:3])
    for given in ((text for text in TEXTS[:3]), rows.tolist(), list(rows), mk.Prompts.from_tokens(rows)):
        found = mk.trace_many(addition, given, by=lambda text: "same")
        assert found.labels == {"same": 3}
        pd.testing.assert_frame_equal(found.part.nodes, mk.trace_many(addition, TEXTS[:3]).part.nodes)


def test_with_thresholds_of_one_all_edges_that_carry_anything_are_kept(addition):
    graphs = mk.trace_many(addition, ["35+59="], node_threshold=1.0, edge_threshold=1.0, targets=["94", ("94", "84")])
    single = mk.trace(addition, "35+59=", check=False, targets=["94", ("94", "84")])
    connected = single.weighted.influence[: single.weighted.n_features] > 1e-3
    answer = graphs.edges().query("receiver == '94'").set_index("sender")["weight"]
    row = single.matrix()[single.weighted.n_features]
    for i in connected.nonzero()[:, 0].tolist():
        if row[i].abs() > 1e-3:
            assert answer[str(single.sources[i].site)] == pytest.approx(float(row[i]), rel=1e-3, abs=1e-6)
    assert "('94', '84')" in set(graphs.edges()["receiver"])


def test_neurons_of_a_random_model_are_traced_and_models_without_mlps(build):
    tokens = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    for model in (build(), build(act_fn="silu", gated_mlp=True), build(attn_only=True)):
        graphs = mk.trace_many(model, tokens)
        single = mk.trace(model, tokens[1], check=False)
        assert graphs.frame()["answer"].tolist()[1] == single.logits[0].name
        influence = graphs[1].nodes["influence"].sum()
        biases = sum(float(single.weighted.influence[i]) for i, n in enumerate(single.sources) if n.kind == "bias")
        expected = float(single.weighted.influence.sum()) - biases + float(single.weighted.weights.sum())
        assert influence == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be_traced_is_named_by_number(addition):
    with pytest.raises(ValueError, match=r"prompt 2: a prompt is empty"):
        mk.trace_many(addition, ["1+2=", "3+4=", ""])
    with pytest.raises(ValueError, match=r"prompt 1: prompt of 9 tokens; the model's context is 5"):
        mk.trace_many(addition, ["1+2=", "1+2=1+2=1"])
    with pytest.raises(ValueError, match=r"prompt 1: token id 999 is outside the vocabulary"):
        mk.trace_many(addition, [[1, 199, 2], [1, 999, 2]])
    with pytest.raises(ValueError, match=r"prompt 1 .'last 3=.\): target 'L0.mlp_out@3' is at position 3"):
        mk.trace_many(addition, ["1+2=", "last 3="], targets=["L0.mlp_out@3"])
    with pytest.raises(ValueError, match="there are no prompts to trace"):
        mk.trace_many(addition, [])
    with pytest.raises(TypeError, match="prompts is one text"):
        mk.trace_many(addition, "1+2=")
    with pytest.raises(ValueError, match="by has 1 labels for 2 prompts"):
        mk.trace_many(addition, ["1+2=", "3+4="], by=["a"])
    with pytest.raises(ValueError, match="by has 1 labels and there are more prompts"):
        mk.trace_many(addition, iter(["1+2=", "3+4="]), by=["a"])
    with pytest.raises(TypeError, match="trace_many makes no checks"):
        mk.trace_many(addition, ["1+2="], check=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nodes'"):
        mk.trace_many(addition, ["1+2="], nodes=3)


def test_questions_that_have_no_answer_say_so(graphs):
    with pytest.raises(ValueError, match=r"no prompt has the label 'x'; the labels are '"):
        graphs.features("x")
    with pytest.raises(ValueError, match="both classes are 'carry'"):
        graphs.compare("carry", "carry")
    with pytest.raises(ValueError, match=r"share is 2\.0"):
        graphs.common(2.0)
    with pytest.raises(ValueError, match="align is 'middle'"):
        graphs.aligned("middle")
    with pytest.raises(ValueError, match="of is 'heads'"):
        graphs.compare("carry", "no carry", "heads")
    with pytest.raises(IndexError, match="there is no prompt 16"):
        graphs[N]
    with pytest.raises(ValueError, match="by has 2 labels for 16 prompts"):
        graphs.by(["a", "b"])


def test_saved_graphs_load_the_same(graphs, tmp_path):
    again = mk.GraphSet.load(graphs.save(tmp_path / "set"))
    assert again.labels == graphs.labels
    for mine, theirs in ((graphs.features(), again.features()), (graphs.edges(), again.edges())):
        pd.testing.assert_frame_equal(mine, theirs)
    assert repr(again) == repr(graphs)
    (tmp_path / "set/part_00000.edges.parquet").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"part_00000.edges.parquet' is missing or damaged"):
        mk.GraphSet.load(tmp_path / "set")
    with pytest.raises(ValueError, match="holds no graphs"):
        mk.GraphSet.load(tmp_path)


def test_a_run_that_was_cut_short_goes_on(addition, tmp_path, monkeypatch):
    monkeypatch.setattr(many, "PART", 4)
    whole = mk.trace_many(addition, TEXTS[:10])

    def cut_short():
        yield from TEXTS[:6]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mk.trace_many(addition, cut_short(), out=tmp_path / "run")
    traced = []
    real = many.graph_on
    monkeypatch.setattr(many, "graph_on", lambda *args, **more: traced.append(1) or real(*args, **more))
    resumed = mk.trace_many(addition, TEXTS[:10], out=tmp_path / "run", by=LABELS[:10])
    assert len(traced) == 6  # the first four were there
    assert resumed.labels == {label: LABELS[:10].count(label) for label in dict.fromkeys(LABELS[:10])}
    pd.testing.assert_frame_equal(resumed.edges(), whole.edges())
    pd.testing.assert_frame_equal(mk.GraphSet.load(tmp_path / "run").edges(), whole.edges())
    with pytest.raises(ValueError, match="holds graphs of other prompts than '1\\+2='"):
        mk.trace_many(addition, ["1+2=", *TEXTS[1:10]], out=tmp_path / "run")
    with pytest.raises(ValueError, match="made with another set of options"):
        mk.trace_many(addition, TEXTS[:10], out=tmp_path / "run", max_logits=2)
    with pytest.raises(ValueError, match="made with another set of dictionaries"):
        mk.trace_many(addition, TEXTS[:10], neurons(addition), out=tmp_path / "run")


def test_progress_counts_prompts_and_not_what_is_done_for_each(addition):
    from mechkit.core.progress import showing

    seen = []

    def bar(items, label, total):
        for item in items:
            seen.append((label, total, getattr(item, "progress_size", 1)))
            yield item

    with showing(bar):
        mk.trace_many(addition, TEXTS[:3])
    assert seen == [("tracing", 3, 1)] * 3


def test_a_file_of_prompts_from_the_command_line(addition, tmp_path, capsys):
    from mechkit.cli import run

    (tmp_path / "sums.txt").write_text("11+12=\tno carry\n21+31=\tno carry\n\n18+19=\tcarry\n28+38=\tcarry\n")
    arguments = ["trace-many", str(tmp_path / "sums.txt"), "--out", str(tmp_path / "set"), "--top", "3"]
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == {"no carry": 2, "carry": 2}
    again = mk.GraphSet.load(tmp_path / "set")
    assert [row["node"] for row in found["features"]] == again.features()["node"].tolist()[:3]
    assert len(found["differences"]["no carry - carry"]) == 3
    assert run(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "GraphSet of 4 prompts" in said
    assert found["edges"][0]["receiver"] in said
    (tmp_path / "empty.txt").write_text("\n")
    assert run(["trace-many", str(tmp_path / "empty.txt"), "--out", str(tmp_path / "none")]) == 2
    assert "holds no prompts" in capsys.readouterr().err

"""What a graph looks like outside: valid JSON, a page whose text is escaped, the same twice."""

import json
from pathlib import Path

import jsonschema
import pytest

import mechkit as mk
from mechkit.graphs.engine.headed import edge_heads
from mechkit.graphs.files.export import graph_document
from mechkit.graphs.meaning.meanings import add_operand_meanings
from tests.conftest import tiny_model
from tests.graphs.brute import random_transcoders

SCHEMA = Path(__file__).with_name("neuronpedia_graph_schema.json")


@pytest.fixture(scope="module")
def graph(addition):
    graph = mk.trace(addition, "35+59=")
    add_operand_meanings(graph, "35+59=")
    return graph


def test_the_json_is_valid_against_neuronpedias_schema(graph):
    schema, data = json.loads(SCHEMA.read_text()), graph_document(graph)
    assert list(jsonschema.Draft7Validator(schema).iter_errors(data)) == []
    del data["nodes"][0]["feature_type"]
    assert len(list(jsonschema.Draft7Validator(schema).iter_errors(data))) == 1


def test_ids_are_unique_and_links_join_nodes(graph):
    data = graph_document(graph)
    ids = [node["node_id"] for node in data["nodes"]]
    assert len(ids) == len(set(ids)) > 20
    assert len({node["jsNodeId"] for node in data["nodes"]}) == len(ids)
    assert {link["source"] for link in data["links"]} | {link["target"] for link in data["links"]} <= set(ids)
    assert data["metadata"]["prompt_tokens"] == ["35", "+", "59", "="]
    assert data["mechkit"]["made"]["weights"]


def test_what_the_file_says_of_biases_completes_each_row(graph):
    data = graph_document(graph)["mechkit"]["nodes"]
    columns = ~graph.weighted.of_kind("bias")
    for node, row in zip(graph.targets, graph.matrix(), strict=True):
        if node.id in data:
            total = float(row[columns].sum()) + data[node.id]["biases"]
            assert total == pytest.approx(data[node.id]["preactivation"], abs=1e-5 * float(row.abs().sum()))


def test_saving_writes_json_and_page_whole(graph, tmp_path):
    assert json.loads(graph.save(tmp_path / "graph.json").read_text())["nodes"]
    page = graph.to_html(tmp_path / "graph.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "https://" not in page.replace("https://www.w3.org", "").replace("http://www.w3.org", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.html", "graph.json"]


def test_a_path_that_cannot_be_written_leaves_nothing(graph, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        graph.save(tmp_path / "absent" / "graph.json")
    assert list(tmp_path.iterdir()) == []


def test_text_of_prompts_is_escaped_in_the_page(tmp_path):
    model = tiny_model()
    graph = mk.trace(model, [1, 2, 3], random_transcoders(model))
    graph.meta = {**graph.meta, "prompt": "</script><img src=x>", "tokens": ["<b>", "</script>", "&"]}
    page = graph.to_html(tmp_path / "page.html").read_text()
    assert "<img src=x>" not in page
    assert "<b>" not in page


def test_every_kept_feature_has_a_plot_a_meaning_and_a_check(graph):
    document = graph_document(graph)
    labels = {node["node_id"]: node["clerp"] for node in document["nodes"]}
    about = {name: node for name, node in document["mechkit"]["nodes"].items() if node["kind"] == "feature"}
    assert about
    for name, node in about.items():
        assert node["plot"]["max"] > 0
        assert node["class"]
        assert labels[name]
        assert set(node["check"]) == {"predicted", "direct", "gradient", "frozen", "measured"}


def test_heads_of_an_edge_are_its_loadings_and_sum_to_it(graph):
    document = graph_document(graph)
    targets = {node.id: node for node in graph.weighted.targets}
    cfg = graph.attribution.frozen.model.cfg
    names = ["no head", *(f"L{layer}.H{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads))]
    for link, heads in zip(document["links"][:30], document["mechkit"]["edges"]["heads"], strict=False):
        column = [node.id for node in graph.weighted.sources].index(link["source"])
        loadings = graph.head_loadings([targets[link["target"]]])[:, 0, column]
        assert float(loadings.sum()) == pytest.approx(link["weight"], rel=1e-4, abs=1e-6)
        assert heads
        for name, share in heads:
            # shares are written with three digits
            assert share == pytest.approx(float(loadings[names.index(name)]) / link["weight"], abs=6e-4)


def test_heads_end_where_the_budget_does(graph):
    everything, nothing = edge_heads(graph), edge_heads(graph, budget=0.0)
    assert None not in everything
    assert set(map(bool, nothing)) == {False}


def test_a_graph_of_other_targets_is_valid_too():
    model = tiny_model()
    graph = mk.trace(model, [1, 2, 3], random_transcoders(model), targets=["L1.H0.z@-1"])
    document = graph_document(graph)
    assert list(jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).iter_errors(document)) == []
    assert [node.kind for node in graph.shown().roots] == ["target"]


def test_neuronpedias_influence_counts_a_node_with_all_that_are_stronger(graph):
    document = graph_document(graph)
    shares = {name: node.get("influence") for name, node in document["mechkit"]["nodes"].items()}
    held = {node["node_id"]: node["influence"] for node in document["nodes"] if node["influence"] is not None}
    order = sorted(held, key=lambda name: -shares[name])
    assert [held[name] for name in order] == sorted(held.values())
    assert 0 < held[order[0]] < held[order[-1]] <= 1

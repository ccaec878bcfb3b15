"""What is saved comes back, other tools' files are read, and what is wrong with a file is said."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import mechkit as mk
from mechkit.graphs.files.saved import SavedGraph
from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.meaning.meanings import add_operand_meanings

SCHEMA = json.loads(Path(__file__).with_name("neuronpedia_graph_schema.json").read_text())


@pytest.fixture(scope="module")
def graph(addition):
    graph = mk.trace(addition, "35+59=")
    add_operand_meanings(graph, "35+59=")
    return graph


@pytest.fixture(scope="module")
def path(graph, tmp_path_factory):
    return graph.save(tmp_path_factory.mktemp("saved") / "graph.json")


@pytest.fixture
def saved(path):
    return AttributionGraph.load(path)


def test_what_is_loaded_and_saved_again_is_the_same_file(path, saved, tmp_path):
    assert saved.save(tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_loaded_graph_shows_what_the_traced_one_does(graph, saved):
    assert [node.id for node in saved.nodes] == [graph.sources[i].id for i in graph.kept_sources] + [
        node.id for node in graph.roots
    ]
    assert [str(node.site) for node in saved.nodes] == [
        str(node.site) for node in [*(graph.sources[i] for i in graph.kept_sources), *graph.roots]
    ]
    assert saved.edges.labels == graph.edges.labels
    # weights are written with the seven digits of a float32
    np.testing.assert_allclose(saved.edges.scores, graph.edges.scores, rtol=1e-6)
    assert saved.scores == pytest.approx(graph.scores)
    assert saved.probabilities == pytest.approx(graph.probabilities)
    assert [repr(path) for path in saved.pathways()] == [repr(path) for path in graph.pathways()]
    assert saved.meta == graph.meta
    assert saved.logits[0].name == "94"


def test_the_frame_holds_shares_and_effects(graph, saved):
    frame = saved.frame().set_index("id")
    assert frame.equals(graph.frame().set_index("id"))
    check = graph.check
    for node, predicted, measured in zip(check.nodes, check.predicted, check.measured, strict=True):
        row = frame.loc[node.id]
        assert row[["predicted", "measured"]].tolist() == pytest.approx([float(predicted), float(measured)])
        assert row["influence"] == pytest.approx(float(graph.weighted.influence[graph.column_of(node)]))
        assert row["token"] == graph.meta["tokens"][node.pos]


def test_edits_of_a_loaded_graph_are_in_what_it_saves(saved, tmp_path):
    first, second, third = [node for node in saved.nodes if node.kind == "feature"][:3]
    saved.label(first, "sum is 94")
    saved.group("sums", [first, second.id])
    saved.group("other", [second, third])
    saved.pin([third])
    again = AttributionGraph.load(saved.save(tmp_path / "edited.json"))
    assert again.labels[first.id] == "sum is 94"
    assert [node.id for node in again.supernodes["sums"]] == [first.id]
    assert [node.id for node in again.supernodes["other"]] == [second.id, third.id]
    assert again.pinned == [third.id]
    again.ungroup("other")
    assert "other" not in again.supernodes
    assert sum(len(nodes) for nodes in again.supernodes.values()) == len(
        {node.id for nodes in again.supernodes.values() for node in nodes}
    )


def test_edits_of_what_is_not_there_are_errors(saved):
    with pytest.raises(ValueError, match="no node '9_9_9' among the 22 that this graph keeps"):
        saved.label("9_9_9", "x")
    with pytest.raises(ValueError, match="with 0 nodes; it needs a name and at least one node"):
        saved.group("x", [])
    with pytest.raises(ValueError, match="no supernode 'x'; there are"):
        saved.ungroup("x")


@pytest.mark.parametrize("name", ["matrix", "attribution", "qk_attribution", "head_loadings", "weighted", "heads"])
def test_what_needs_the_model_says_so(saved, name):
    with pytest.raises(AttributeError, match=rf"'{name}' needs the model.*mechkit\.trace\(model, '35\+59='\)"):
        getattr(saved, name)


def test_a_name_that_no_graph_has_is_an_ordinary_error(saved):
    with pytest.raises(AttributeError, match="a saved graph has no 'matrx'"):
        _ = saved.matrx


def test_a_loaded_graph_draws_itself(saved, tmp_path):
    assert saved.to_html(tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert saved.to_png(tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    frame = saved.view(400)._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert "height: 400px" in frame
    assert "<script" not in frame


# --- other tools' files


def ct_node(kind: str, layer: int, pos: int, number: int, **more) -> dict:
    """A node as circuit-tracer writes it (0.5.0: an error's id starts with 0)."""
    words = {
        "feature": (f"{layer}_{number}_{pos}", "cross layer transcoder", str(layer)),
        "error": (f"0_{layer}_{pos}", "mlp reconstruction error", str(layer)),
        "token": (f"E_{number}_{pos}", "embedding", "E"),
        "logit": (f"{layer}_{number}_{pos}", "logit", str(layer)),
    }
    name, feature_type, layer_text = words[kind]
    paired = (layer + number) * (layer + number + 1) // 2 + number
    about = {"node_id": name, "feature": -1 if kind == "error" else paired, "layer": layer_text, "ctx_idx": pos}
    about |= {"feature_type": feature_type, "token_prob": 0.0, "is_target_logit": kind == "logit", "run_idx": 0}
    about |= {"reverse_ctx_idx": 0, "jsNodeId": f"{layer}_{number}-0", "clerp": "", "influence": 0.5}
    return about | {"activation": None} | more


def circuit_tracer_file() -> dict:
    """A graph of two layers and three tokens in circuit-tracer's format."""
    nodes = [
        ct_node("feature", 0, 1, 7, activation=2.5, clerp="Texas"),
        ct_node("feature", 1, 2, 1234, activation=0.5),
        ct_node("error", 1, 2, 0),
        ct_node("token", 0, 0, 2),
        ct_node("token", 0, 1, 26865),
        ct_node("logit", 3, 2, 22605, token_prob=0.75, clerp='Output "Austin" (p=0.750)'),
        ct_node("logit", 3, 2, 26865, token_prob=0.25, clerp='Output "Dallas" (p=0.250)'),
    ]
    links = [
        ("E_26865_1", "0_7_1", 3.0),
        ("E_2_0", "0_7_1", -1.0),
        ("0_7_1", "1_1234_2", 2.0),
        ("1_1234_2", "3_22605_2", 4.0),
        ("0_7_1", "3_22605_2", 1.0),
        ("0_1_2", "3_22605_2", -5.0),
        ("1_1234_2", "3_26865_2", 1.0),
    ]
    return {
        "metadata": {
            "slug": "dallas-austin",
            "scan": "gemma-2-2b",
            "transcoder_list": [],
            "prompt_tokens": ["<bos>", "Dallas", " is"],
            "prompt": "<bos>Dallas is",
            "node_threshold": 0.8,
            "schema_version": 1,
        },
        "qParams": {
            "pinnedIds": ["0_7_1"],
            "supernodes": [["Texas", "0_7_1", "1_1234_2"]],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": [{"source": s, "target": t, "weight": w} for s, t, w in links],
    }


def written(tmp_path: Path, document) -> Path:
    path = tmp_path / "other.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def test_a_file_of_circuit_tracer_is_read(tmp_path):
    graph = AttributionGraph.load(written(tmp_path, circuit_tracer_file()))
    kinds = {node.id: (node.kind, node.layer, node.pos, node.index) for node in graph.nodes}
    assert kinds["0_7_1"] == ("feature", 0, 1, 7)
    assert kinds["1_1234_2"] == ("feature", 1, 2, 1234)
    assert kinds["0_1_2"] == ("error", 1, 2, None)
    assert kinds["E_26865_1"] == ("token", -1, 1, 26865)
    assert kinds["3_22605_2"] == ("logit", 2, 2, 22605)
    assert [node.name for node in graph.logits] == ["Austin", "Dallas"]
    assert str(graph.nodes[1].site) == "L1.mlp_out[gemma-2-2b]@2#1234"
    assert graph.labels["0_7_1"] == "Texas"
    assert [node.id for node in graph.supernodes["Texas"]] == ["0_7_1", "1_1234_2"]
    assert graph.edges.top(1).labels == ["L1.mlp_out[error]@2 -> logits@2#22605"]
    assert graph.pathways() == []


def test_shares_of_another_tools_file_are_those_of_all_paths(tmp_path):
    document = circuit_tracer_file()
    frame = AttributionGraph.load(written(tmp_path, document)).frame()
    shares = dict(zip(frame["id"], frame["influence"], strict=True))
    start: dict[str, float] = {node["node_id"]: node["token_prob"] for node in document["nodes"]}
    into: dict[str, list] = {}
    for link in document["links"]:
        into.setdefault(link["target"], []).append((link["source"], abs(link["weight"])))

    def reach(source: str, target: str) -> float:
        """The share of `target` that comes from `source`, path by path."""
        if source == target:
            return 1.0
        total = sum(weight for _, weight in into.get(target, []))
        return sum(weight / total * reach(source, below) for below, weight in into.get(target, []))

    for name in shares:
        expected = sum(p * reach(name, logit) for logit, p in start.items() if p > 0)
        assert float(shares[name]) == pytest.approx(expected, abs=1e-12)


def test_a_file_of_circuit_tracer_is_shown_and_stays_valid(tmp_path):
    graph = AttributionGraph.load(written(tmp_path, circuit_tracer_file()))
    saved = graph.save(tmp_path / "ours.json")
    document = json.loads(saved.read_text())
    assert list(jsonschema.Draft7Validator(SCHEMA).iter_errors(document)) == []
    for part in ("metadata", "qParams", "nodes", "links"):
        assert document[part] == circuit_tracer_file()[part]
    assert AttributionGraph.load(saved).save(tmp_path / "again.json").read_bytes() == saved.read_bytes()
    assert graph.to_html(tmp_path / "page.html").stat().st_size > 10_000
    assert graph.to_png(tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_loaded_is_not_changed_by_it(path):
    for document in (circuit_tracer_file(), json.loads(path.read_text())):
        before = json.dumps(document)
        SavedGraph(document).label(document["nodes"][0]["node_id"], "x")
        assert json.dumps(document) == before


def test_ids_of_an_error_and_a_feature_that_collide_are_an_error(tmp_path):
    document = circuit_tracer_file()
    document["nodes"] += [
        ct_node("feature", 0, 1, 1),
        ct_node("error", 1, 1, 0),
    ]  # both are 0_1_1 in circuit-tracer 0.5.0
    with pytest.raises(ValueError, match=r"other\.json.* two nodes are called '0_1_1' \(the second is nodes\[8\]\)"):
        AttributionGraph.load(written(tmp_path, document))


def test_a_feature_number_is_unpaired_where_the_id_has_none(tmp_path):
    text = json.dumps(circuit_tracer_file()).replace('"1_1234_2"', '"some feature"')
    graph = AttributionGraph.load(written(tmp_path, text))
    assert next(node for node in graph.nodes if node.id == "some feature").index == 1234


# --- damaged files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"metadata": ', r"damaged: Expecting value at line 1, column 14"),
        ("[1, 2]", "its top level is \\[1, 2\\]; it must be an object"),
        ("{}", "it has no 'metadata'; a graph's file follows Neuronpedia's graph schema"),
        ("[" * 100_000, "damaged|nested too deep"),
    ],
)
def test_a_file_that_is_no_graph_says_so(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        AttributionGraph.load(written(tmp_path, text))


def test_a_file_that_is_no_text_says_so(tmp_path):
    path = tmp_path / "graph.json"
    path.write_bytes(b"\x89PNG\xff\x00")
    with pytest.raises(ValueError, match="is no JSON file: byte 0 is not UTF-8"):
        AttributionGraph.load(path)


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        AttributionGraph.load(tmp_path / "absent.json")


def spoil(document: dict, change) -> dict:
    change(document)
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("links"), "it has no 'links'"),
        (lambda d: d["metadata"].pop("prompt_tokens"), "metadata has no 'prompt_tokens'"),
        (lambda d: d["metadata"].update(prompt_tokens=[1]), r"prompt_tokens\[0\] is 1; it must be text"),
        (lambda d: d["nodes"][2].pop("clerp"), r"nodes\[2\] has no 'clerp'"),
        (lambda d: d["nodes"][2].update(layer=True), r"nodes\[2\]\.layer is true; it must be text or a whole number"),
        (lambda d: d["nodes"][2].update(layer="top"), "is in layer 'top'; a layer is a whole number or E"),
        (lambda d: d["nodes"][2].update(ctx_idx=9), "is at position 9; the prompt has"),
        (lambda d: d["nodes"][2].update(activation="2"), r"nodes\[2\]\.activation is \"2\"; it must be a"),
        (lambda d: d["links"][0].update(source="nowhere"), r"links\[0\]\.source is 'nowhere', which is not a node"),
        (lambda d: d["links"][0].update(weight=1e999), r"JSON has not|must be finite"),
        (lambda d: d["links"][0].update(weight=None), r"links\[0\]\.weight is null; it must be"),
        (lambda d: d["qParams"].update(pinnedIds=["gone"]), "qParams.pinnedIds names 'gone'"),
        (lambda d: d["qParams"].update(supernodes=[["a", "gone"]]), r"supernodes\[0\] names 'gone'"),
        (lambda d: d["qParams"].update(supernodes=[["a"], ["a"]]), "two supernodes are called 'a'"),
        (lambda d: d["qParams"].update(supernodes=[[]]), r"supernodes\[0\] is empty"),
    ],
)
@pytest.mark.parametrize("source", ["ours", "circuit-tracer"])
def test_a_file_that_contradicts_itself_says_how(change, message, source, path, tmp_path):
    document = json.loads(path.read_text()) if source == "ours" else circuit_tracer_file()
    with pytest.raises(ValueError, match=message):
        AttributionGraph.load(written(tmp_path, spoil(document, change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: first(m["nodes"]).update(kind="neuron"), "of kind 'neuron'; kinds are feature, "),
        (lambda m: first(m["nodes"]).update(plot={"png": "https://x/y.png"}), "must be a PNG data URI"),
        (lambda m: first(m["nodes"]).update(layer=7), "is in layer 7; layers here are -1 to 2"),
        (lambda m: first(m["nodes"]).update(pos="x"), 'pos is "x"; it must be'),
        (lambda m: first(m["nodes"]).update(site="L1.*!"), "site"),
        (lambda m: m["nodes"].pop(next(iter(m["nodes"]))), "mechkit.nodes has nothing of '"),
        (lambda m: m["edges"]["influence"].pop(), "mechkit.edges.influence has 114 entries for 115 links"),
        (lambda m: m["pathways"][0].update(nodes=["gone"]), r"mechkit.pathways\[0\].nodes names 'gone'"),
        (lambda m: m.update(n_layers="2"), 'n_layers is "2"; it must be a whole number'),
    ],
)
def test_what_we_wrote_beyond_the_schema_is_checked_too(change, message, path, tmp_path):
    document = json.loads(path.read_text())
    change(document["mechkit"])
    with pytest.raises(ValueError, match=message):
        AttributionGraph.load(written(tmp_path, document))


def first(nodes: dict) -> dict:
    return next(iter(nodes.values()))

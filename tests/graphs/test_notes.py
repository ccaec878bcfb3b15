"""What is known of features: promoted tokens as the model runs, tokens of the prompt as a dense solve, and an index."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import mechkit as mk
from mechkit.core.weights import weights_hash
from mechkit.dictionaries import load_sae, neurons
from mechkit.graphs.files.export import node_label
from mechkit.graphs.meaning.indexed import indexed_layers
from mechkit.graphs.meaning.notes import in_words
from mechkit.graphs.meaning.promoted import likeness, logit_effects, promoted, read_at_end, unembedding_gram, written
from mechkit.graphs.meaning.received import received, tokens_named
from mechkit.graphs.meaning.supernodes import kept_features
from tests.core.architectures import make
from tests.graphs.frozen_runs import TOKENS, across, transcoders
from tests.graphs.test_any_model import norm_weights

PROMPT = "the capital of France is"
TEXTS = ["the capital of France is Paris .", "the capital of Italy is Rome .", "the capital of Peru is Lima ."]

BASES = {"neurons": neurons, "across layers": across, "skip": lambda model: transcoders(model, skip=True)}


def direct_effect(model, tokens, graph, node):
    """Logits after a feature's position with it, less those without it: later parts and every scale held."""
    cache = model.run_with_cache(tokens)[1]
    basis, bases = graph.attribution.bases[node.layer], graph.attribution.bases
    held = [name for name in cache if name.endswith(("hook_scale", "hook_attn_out", "hook_pattern"))]
    held += [f"blocks.{layer}.hook_mlp_out" for layer in range(model.cfg.n_layers) if layer not in basis.reaches]
    hooks, before_norms = [(name, lambda x, hook: cache[hook.name].clone()) for name in held], []
    for layer in basis.reaches:
        row = torch.zeros(len(tokens[0]), model.cfg.d_model)
        row[node.pos] = node.value * basis.writes([node.index], layer)[0]
        if bases[layer].hook_out.endswith("mlp.hook_out"):  # a norm follows; its input is no hook
            before_norms.append((model.blocks[layer].mlp, lambda module, args, out, row=row: out - row))
        else:
            hooks.append((bases[layer].hook_out, lambda x, hook, row=row: cache[hook.name] - row))
    with torch.no_grad():
        full, handles = model(tokens)[0, node.pos], [mlp.register_forward_hook(f) for mlp, f in before_norms]
        less = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, node.pos]
        [handle.remove() for handle in handles]
    cap = model.cfg.output_logits_soft_cap
    full, less = (cap * torch.atanh(x / cap) if cap and cap > 0 else x for x in (full, less))
    return full - less - (full - less).mean()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("LayerNorm", "across layers"), ("Gemma 2", "neurons"), ("folded parallel", "skip"), ("no norm", "neurons")],
)
def test_promoted_tokens_are_what_leaves_the_logits_with_the_feature(build, name, kind):
    model = norm_weights(make(build, name))
    graph = mk.trace(model, TOKENS, BASES[kind](model), check=False)
    nodes = kept_features(graph)[::7]
    assert len({node.layer for node in nodes}) > 1
    read = read_at_end(graph.attribution, written(graph.attribution, nodes), [node.pos or 0 for node in nodes])
    effects = torch.cat(list(logit_effects(graph.attribution, read)))
    for node, effect in zip(nodes, effects, strict=True):
        truth = direct_effect(model, torch.tensor([TOKENS]), graph, node)
        assert float(truth.abs().max()) > 0
        torch.testing.assert_close(effect, truth, rtol=1e-3, atol=1e-4)  # float32 differences of logits of size 10
        notes = graph.notes[node.id]
        order = effect.sort(descending=True)
        assert [value for _, value in notes.promoted] == pytest.approx(order.values[:10].tolist(), rel=1e-4, abs=1e-5)
        assert [value for _, value in notes.suppressed] == pytest.approx(
            order.values.flip(0)[:10].tolist(), rel=1e-4, abs=1e-5
        )
        assert notes.promoted[0][0] == f"<{int(order.indices[0])}>"


def test_likeness_is_the_cosine_of_the_effects(build):
    model = norm_weights(make(build, "LayerNorm"))
    graph = mk.trace(model, TOKENS, across(model), check=False)
    nodes = kept_features(graph)
    read = read_at_end(graph.attribution, written(graph.attribution, nodes), [node.pos or 0 for node in nodes])
    unit = torch.nn.functional.normalize(torch.cat(list(logit_effects(graph.attribution, read))), dim=1)
    torch.testing.assert_close(
        likeness(graph.attribution, nodes, unembedding_gram(graph.attribution)), unit @ unit.T, rtol=1e-4, atol=1e-5
    )


def test_only_a_token_above_all_noise_is_named(build):
    """Random directions name next to nothing; one that an unembedding column points along names that token."""
    model = build(d_vocab=4000, d_model=64, normalization_type=None)
    with torch.no_grad():
        model.W_U.copy_(torch.randn(model.W_U.shape, generator=torch.Generator().manual_seed(3)))
    graph = mk.trace(model, [1, 2, 3], neurons(model), check=False)
    noise = torch.randn(200, 64, generator=torch.Generator().manual_seed(4))
    said = promoted(graph.attribution, noise, [2] * 200)
    assert sum(bool(one.named) for one in said) < 40  # a fifth of noise passes a bar at the largest expected
    wanted = noise / noise.norm(dim=1, keepdim=True) + 0.3 * model.W_U.detach()[:, :200].T
    said = promoted(graph.attribution, wanted, [2] * 200)
    assert sum(one.named[:1] == [f"<{i}>"] for i, one in enumerate(said)) > 190


@pytest.mark.parametrize("kind", ["across layers", "neurons", "skip"])
def test_tokens_of_the_prompt_reach_features_as_a_dense_solve_says(build, kind):
    model = norm_weights(make(build, "Llama" if kind == "neurons" else "LayerNorm"))
    graph = mk.trace(model, TOKENS[:3], BASES[kind](model), check=False, node_threshold=1.0, edge_threshold=1.0)
    nodes, matrix = kept_features(graph), graph.weighted
    edges = torch.zeros(len(matrix.targets), len(matrix.sources))
    places, weights, _ = graph.kept_edges
    edges[places[:, 0], places[:, 1]] = weights
    rows = [[target.id for target in matrix.targets].index(node.id) for node in nodes]
    columns = [graph.column_of(node) for node in nodes]
    among = edges[rows][:, columns] / torch.tensor(
        [node.value for node in nodes]
    )  # slopes of ReLU and gated rows are 1
    tokens = [i for i, node in enumerate(matrix.sources) if node.kind == "token"]
    truth = torch.linalg.solve(torch.eye(len(nodes)).double() - among.double(), edges[rows][:, tokens].double())
    found = received(graph, nodes)
    assert np.abs(found).max() > 0.1
    np.testing.assert_allclose(found, truth.numpy(), rtol=1e-4, atol=1e-5)


def test_tokens_are_named_where_they_stand_for_much(build):
    graph = mk.trace(build(), TOKENS[:3], check=False)
    graph.meta = {**graph.meta, "tokens": ["a", " b", "\n"]}
    assert tokens_named(graph, np.array([1.0, 3.0, 0.1])) == ["b"]
    assert tokens_named(graph, np.array([2.0, 3.0, 0.1])) == ["b", "a"]
    assert tokens_named(graph, np.array([-9.0, 1.0, 0.0])) == []
    assert tokens_named(graph, np.array([0.0, 0.0, 5.0])) == [repr("\n")]
    assert tokens_named(graph, np.zeros(3)) == []
    assert in_words(["France"], ["Paris", "Lyon"]) == "France → Paris, Lyon"
    assert (in_words([], ["Paris"]), in_words(["France"], []), in_words([], [])) == (
        "promoting Paris", "reading France", "",
    )  # fmt: skip


# --- with an index


@pytest.fixture(scope="module")
def tinyworld():
    return mk.load("tinyworld")


@pytest.fixture(scope="module")
def index(tinyworld, tmp_path_factory):
    folder = tinyworld.mechkit_origin.folder / "transcoders"
    saes = {f"layer_{layer}": load_sae(folder / f"layer_{layer}", tinyworld) for layer in range(4)}
    return mk.scan(tinyworld, saes, TEXTS * 3, tmp_path_factory.mktemp("index") / "features")


@pytest.fixture(scope="module")
def graph(tinyworld, index):
    return mk.trace(tinyworld, PROMPT, index=index, check=False)


def test_one_index_of_every_transcoder_explains_every_layer(tinyworld, index, graph):
    assert sorted(graph.indexed) == [0, 1, 2, 3]
    shown = [node for node in kept_features(graph) if graph.notes[node.id].examples]
    assert {node.layer for node in shown} == {0, 1, 2, 3}
    vocabulary = tinyworld.tokenizer.get_vocab()
    for node in shown[::5]:
        notes, basis = graph.notes[node.id], graph.attribution.bases[node.layer]
        for tokens, activations, at in notes.examples:
            ids = torch.tensor([[vocabulary[token] for token in tokens]])
            x = tinyworld.run_with_cache(ids, names_filter=basis.hook_in)[1][basis.hook_in][0]
            own = basis.activations(x)[:, node.index]
            assert tokens[0] == "<bos>"  # the window holds the whole text, so the model can be run on it
            np.testing.assert_allclose(activations, own.detach().numpy(), rtol=1e-3, atol=1e-4)
            assert at == int(own.argmax())
        assert notes.density == index.open(index.folder, f"layer_{node.layer}").density[node.index] > 0


def test_labels_are_read_from_the_index_with_their_source(graph, index):
    node = max(kept_features(graph), key=lambda node: node.layer)
    own = index.open(index.folder, f"layer_{node.layer}")
    own.label(node.index, "found by a program", source="counter", automatic=True)
    graph.explain(index)
    assert graph.notes[node.id].labels == [("found by a program", "counter (automatic)")]
    assert node_label(graph, node).endswith("found by a program")
    assert graph.index_label(node) is None  # no more than a program's word
    own.label(node.index, "France, said by me")
    graph.explain(index)
    assert graph.notes[node.id].labels[0] == ("France, said by me", "user")
    assert node_label(graph, node) == "France, said by me" == graph.index_label(node)
    graph.label(node, "mine in this graph")
    assert node_label(graph, node) == "mine in this graph"
    own.labels.remove(node.index)
    own.labels.remove(node.index, "counter")
    graph.label(node, "")
    graph.explain(index)


def test_indexes_come_as_a_sequence_or_by_layer_or_name(graph, index):
    one, two = (index.open(index.folder, f"layer_{layer}") for layer in (1, 2))
    before = graph.indexed
    engine, nodes = graph.attribution, kept_features(graph)
    assert set(indexed_layers(engine, [index], nodes)) == {0, 1, 2, 3}
    assert indexed_layers(engine, {1: one}, nodes) == {1: one}
    assert indexed_layers(engine, {"transcoders/layer_2": two, 1: one}, nodes) == {1: one, 2: two}
    with pytest.raises(ValueError, match="was given for layer 2; it reads blocks"):
        graph.explain({2: one})
    with pytest.raises(ValueError, match=r"no dictionary 7 in this graph; it has layers 0 to 3"):
        graph.explain({7: one})
    with pytest.raises(ValueError, match="all describe the dictionary 'transcoders/layer_0'"):
        graph.explain([index, index])
    with pytest.raises(TypeError, match=r"an index is what mechkit.scan gives, not str"):
        graph.explain(["features/"])
    assert graph.indexed is before


def test_an_index_of_other_weights_is_refused(tinyworld, index):
    bias = tinyworld.blocks[3].mlp.b_out
    kept = bias.data.clone()
    try:
        bias.data[0] += 1e-3
        assert weights_hash(tinyworld) != index.manifest["model"]["sha256"]
        with pytest.raises(ValueError, match=r"other weights than the traced model's: sha256 of 'tinyworld' was"):
            mk.trace(tinyworld, PROMPT, index=index, check=False)
    finally:
        bias.data.copy_(kept)


def test_an_index_of_another_dictionary_is_refused(tinyworld, index, graph):
    with pytest.raises(ValueError, match=r"'layer_0' of the index in .* has 2048 features, the dictionary 768"):
        mk.trace(tinyworld, PROMPT, neurons(tinyworld), index=index, check=False)
    own = graph.attribution.bases
    for name, changed in (("W_dec", own[2].W_dec.flip(0)), ("W_enc", own[2].W_enc * 1.1), ("b_enc", own[2].b_enc - 1)):
        others = [*own[:2], dataclasses.replace(own[2], **{name: changed}), own[3]]
        with pytest.raises(ValueError, match=rf"'transcoders/layer_2': 'layer_2' .* has another {name} of feature \d+"):
            indexed_layers(dataclasses.replace(graph.attribution, bases=others), index, kept_features(graph))


def test_an_index_of_an_sae_of_the_residual_stream_is_refused(tinyworld, tmp_path):
    from mechkit.dictionaries import saes_for

    sae = saes_for(tinyworld)["blocks.2.hook_resid_post"]
    index = mk.scan(tinyworld, sae, TEXTS, tmp_path / "features")
    with pytest.raises(
        ValueError, match=r"features at blocks.2.hook_resid_post; the dictionaries .* read blocks.0.ln2"
    ):
        mk.trace(tinyworld, PROMPT, index=index, check=False)


@pytest.mark.slow
def test_a_label_from_an_index_is_in_the_saved_graph_and_on_the_command_line(graph, index, tmp_path, capsys):
    from mechkit.cli import run

    node = max(kept_features(graph), key=lambda node: float(graph.weighted.influence[graph.column_of(node)]))
    own = index.open(index.folder, f"layer_{node.layer}")
    own.label(node.index, "a name of my own")
    try:
        run(["trace", PROMPT, "--model", "tinyworld", "--index", str(index.folder), "--out", str(tmp_path)])
    finally:
        own.labels.remove(node.index)
    saved = {one["node_id"]: one["clerp"] for one in json.loads((tmp_path / "trace.json").read_text())["nodes"]}
    assert saved[node.id] == "a name of my own"
    assert "a name of my own" in (tmp_path / "trace.html").read_text()
    assert "Paris" in capsys.readouterr().out

"""Descents: shortcuts change no number, and numbers of every type do."""

import pytest
import torch

import mechkit as mk
from mechkit.core.prompts import Prompts
from mechkit.dictionaries import neurons
from mechkit.graphs.engine.attribution import Attribution
from mechkit.graphs.engine.frozen import FrozenModel
from mechkit.graphs.engine.reading import mlp_input
from mechkit.graphs.engine.roots import logit_roots
from tests.core.architectures import make
from tests.graphs.frozen_runs import TOKENS, traced, transcoders
from tests.graphs.test_any_model import BASES, errors, norm_weights

DIFFERENT_AT_THE_BOTTOM = (
    "LayerNorm", "no norm", "Llama", "shortformer", "parallel", "attention only", "bidirectional", "clipped q, k, v",
    "grouped queries", "Gemma 2", "OLMo 2", "one layer",
)  # fmt: skip
"""Variants whose first attention, or what is read beside it, differs."""


@pytest.mark.parametrize("name", DIFFERENT_AT_THE_BOTTOM)
def test_embeddings_met_before_the_first_attention_give_the_same_columns(build, name, monkeypatch):
    model = norm_weights(make(build, name))
    bases = None if model.cfg.attn_only else transcoders(model, skip=True)
    met = []
    spread = Attribution.spread.func
    monkeypatch.setattr(Attribution, "spread", property(lambda self: met.append(spread(self)) or met[-1]))
    found = {}
    for short in (False, True):
        monkeypatch.setattr(Attribution, "is_short", short)
        found[short] = traced(model, bases).matrix()
    assert [bool(one) for one in (met[0], met[-1])] == [False, True]  # each way was taken
    assert float((found[True] - found[False]).abs().max() / found[False].abs().max()) < 1e-5


SEEING_NOTHING_LATER = tuple(name for name in DIFFERENT_AT_THE_BOTTOM if name != "bidirectional")


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("name", SEEING_NOTHING_LATER)
def test_what_a_bos_writes_is_met_in_values_and_gives_the_same_columns(build, name, short, monkeypatch):
    model = norm_weights(make(build, name))
    bases = [] if model.cfg.attn_only else transcoders(model, skip=True)
    frozen = FrozenModel.on(model, Prompts.from_tokens([TOKENS]), [mlp_input(basis) for basis in bases])
    monkeypatch.setattr(Attribution, "is_short", True)
    if not short:
        monkeypatch.setattr(Attribution, "spread", {})
    engine, plain = (Attribution(frozen, bases, logit_roots(frozen, [1, 2], centred=True), True) for _ in range(2))
    vars(plain)["first"] = None
    assert engine.first.columns
    rows, expected = (one.rows(one.targets)[0] for one in (engine, plain))
    assert float((rows - expected).abs().max() / expected.abs().max()) < 1e-5
    sums = torch.tensor([node.preactivation for node in engine.targets])
    assert float(((rows.sum(1) - sums).abs() / rows.abs().sum(1)).max()) < 1e-4


@pytest.mark.parametrize("kind", ["ReLU", "TopK"])
def test_features_are_met_alike_as_many_or_not_at_each_position(build, kind):
    model = build(n_layers=3)
    graph = traced(model, BASES[kind](model))
    counts = {len(active.offsets) and b - a for active in graph.attribution.active
              for a, b in zip(active.offsets, active.offsets[1:], strict=False)}  # fmt: skip
    assert (len(counts) == 1) == (kind == "TopK")
    assert errors(graph)["feature"] < 1e-5


def test_prompts_of_one_call_share_folded_weights_and_no_more(build):
    model = build(n_layers=2)
    both = Prompts.from_tokens([TOKENS, TOKENS[::-1]])
    first, second = FrozenModel.each(model, both)
    assert first.layers[0].folded is second.layers[0].folded
    assert first.layers[0].folded is not FrozenModel.on(model, both[0]).layers[0].folded


@pytest.mark.parametrize("kind", ["neurons", "TopK"])
def test_a_model_in_bfloat16_has_a_graph_in_bfloat16(build, kind):
    exact = build(n_layers=2)
    rough = build(n_layers=2)
    rough.load_state_dict(exact.state_dict())
    rough.to(torch.bfloat16)
    graph, reference = (
        mk.trace(model, TOKENS, bases_of(model, kind), check=False, targets=[1, 2]) for model in (rough, exact)
    )
    assert graph.matrix().dtype == torch.bfloat16
    sums = graph.matrix().float().sum(1)
    sizes = graph.matrix().float().abs().sum(1)
    assert float(((sums - graph.preactivations.float()).abs() / sizes).max()) < 0.05  # 8 bits, 40 to 200 terms
    assert graph.scores["completeness"] == pytest.approx(reference.scores["completeness"], abs=0.05)
    assert len(graph.edges) > 0


def bases_of(model, kind):
    """Bases in the model's own type."""
    if kind == "neurons":
        return neurons(model)
    from dataclasses import replace

    own = model.W_E.dtype
    tensors = ("W_enc", "b_enc", "W_dec", "b_dec")
    return [replace(basis, **{n: getattr(basis, n).to(own) for n in tensors}) for basis in transcoders(model, k=4)]

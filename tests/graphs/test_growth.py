"""Rows by blocks, rows of the most influential features only, limits of memory, and targets of every kind."""

import re
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechkit as mk
from benchmarks.counting import peak_memory
from mechkit.core.loop import hooked
from mechkit.dictionaries import neurons
from mechkit.graphs.engine.blocks import largest
from mechkit.graphs.engine.roots import FOLLOWED
from tests.conftest import tiny_model
from tests.core.architectures import make
from tests.graphs.frozen_runs import TOKENS, across, transcoders

FLOAT32 = 1e-5


@pytest.fixture(scope="module")
def model():
    return tiny_model(n_layers=3)


@pytest.fixture(scope="module")
def bases(model):
    return transcoders(model, skip=True)


@pytest.fixture(scope="module")
def graph(model, bases):
    return mk.trace(model, TOKENS, bases, check=False)


def aligned(part, whole):
    """Rows of `whole` in the order of `part`'s."""
    rows = {node.id: i for i, node in enumerate(whole.targets)}
    return whole.matrix()[[rows[node.id] for node in part.targets]]


def test_blocks_hold_all_that_is_not_zero_and_little_else(graph):
    engine = graph.attribution
    torch.testing.assert_close(graph.matrix(), engine.rows(graph.targets)[0], rtol=0, atol=1e-6)
    dense = len(graph.targets) * len(graph.sources)
    assert int((graph.matrix() != 0).sum()) <= graph.rows.n_stored < 0.45 * dense
    entries = torch.randint(0, dense, (50,), generator=torch.Generator().manual_seed(0))
    t, s = entries // len(graph.sources), entries % len(graph.sources)
    assert torch.equal(graph.rows.at(t, s), graph.matrix()[t, s])


def test_room_for_few_targets_at_once_changes_nothing(graph):
    engine = graph.attribution
    whole = engine.rows(graph.targets)[0]
    small = torch.zeros_like(whole)
    sizes = []
    for block in engine.blocks(graph.targets, room=1):
        small[block.rows[:, None], block.columns] = block.values
        sizes.append(len(block.rows))
    assert max(sizes) == 2
    torch.testing.assert_close(small, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_a_coverage_computes_fewer_rows_and_says_what_it_followed(model, bases, graph, coverage):
    part = mk.trace(model, TOKENS, bases, check=False, coverage=coverage)
    assert coverage <= part.coverage < 1
    assert len(part.targets) < len(graph.targets)
    torch.testing.assert_close(part.matrix(), aligned(part, graph), rtol=0, atol=1e-6)
    inputs = part.weighted.influence[part.weighted.of_kind("token", "position", "error", "bos")].sum()
    assert float(inputs) == pytest.approx(part.coverage, abs=1e-5)
    assert graph.coverage == pytest.approx(1, abs=1e-6)


def test_features_left_out_have_less_influence_than_what_is_not_covered(model, bases, graph):
    part = mk.trace(model, TOKENS, bases, check=False, coverage=0.8)
    expanded = {node.id for node in part.targets}
    left = [i for i, node in enumerate(graph.sources) if node.kind == "feature" and node.id not in expanded]
    assert left
    assert float(graph.weighted.influence[left].max()) <= 1 - part.coverage + 1e-6


def test_at_most_so_many_features_have_rows(model, bases, graph):
    part = mk.trace(model, TOKENS, bases, check=False, max_nodes=12)
    kept = [node for node in part.targets if node.kind == "feature"]
    assert len(kept) == 12
    assert 0 < part.coverage < 1
    assert f"{part.coverage:.1%} of the influence followed" in repr(part)
    everything = mk.trace(model, TOKENS, bases, check=False, max_nodes=10_000)
    assert torch.equal(everything.matrix(), graph.matrix())
    best = graph.weighted.influence[: graph.weighted.n_features].sort(descending=True).values
    found = sum(float(graph.weighted.influence[graph.column_of(node)]) for node in kept)
    assert found > 0.6 * float(best[:12].sum())  # found one after the other, from the top down


def test_a_part_of_a_graph_can_be_pruned_checked_and_saved(model, bases, tmp_path):
    part = mk.trace(model, TOKENS, bases, max_nodes=12)
    assert part.check.exact_error < FLOAT32
    assert len(part.edges) > 0
    part.save(tmp_path / "g.json")
    part.to_html(tmp_path / "g.html")
    expanded = {node.id for node in part.targets}
    assert all(part.sources[i].id in expanded for i in part.kept_sources if part.sources[i].kind == "feature")


def test_memory_that_does_not_suffice_says_what_would_and_what_fits(model, bases):
    said = r"may need up to (\d+) KiB, and .*KiB may be used: (\d+) of \d+ features fit, which cover"
    with pytest.raises(MemoryError, match=said) as caught:
        mk.trace(model, TOKENS, bases, check=False, memory=300_000)
    needed, n_fit = map(int, re.findall(said, str(caught.value))[0])
    fits = float(re.findall(r"give coverage=([\d.]+)", str(caught.value))[0])
    assert 0.05 < fits < 1
    assert mk.trace(model, TOKENS, bases, check=False, memory=300_000, coverage=fits).coverage >= fits
    assert mk.trace(model, TOKENS, bases, check=False, memory=300_000, max_nodes=n_fit).weighted.n_features == n_fit
    assert mk.trace(model, TOKENS, bases, check=False, memory=(needed + 1) * 1024).coverage == pytest.approx(1)
    with pytest.raises(MemoryError, match=r"its 241 active features take .* KiB before any row, and 29\.3 KiB may be"):
        mk.trace(model, TOKENS, bases, check=False, memory=30_000)


@pytest.mark.slow
def test_memory_bounds_what_is_held_at_once():
    model = tiny_model(n_layers=4, d_model=64, n_heads=4, d_head=16, n_ctx=256)
    bases = transcoders(model, n=2048, k=32)
    tokens = [i % model.cfg.d_vocab for i in range(256)]
    mk.trace(model, tokens, bases, check=False, max_nodes=64)  # imports, and pages of the allocator
    limit = 120 << 20
    refused, peak = peak_memory(lambda: _refused(model, tokens, bases, limit), "cpu")
    assert peak < limit
    n = int(re.findall(r"max_nodes=(\d+)", refused)[0])
    graph, peak = peak_memory(lambda: mk.trace(model, tokens, bases, check=False, memory=limit, max_nodes=n), "cpu")
    assert graph.weighted.n_features == n
    assert 0.3 * limit < peak < limit


def _refused(model, tokens, bases, limit):
    with pytest.raises(MemoryError) as caught:
        mk.trace(model, tokens, bases, check=False, memory=limit, max_nodes=20_000)
    return str(caught.value)


def test_options_out_of_range_are_refused(model, bases):
    for options, complaint in (
        ({"memory": 0}, "memory is 0 bytes"),
        ({"coverage": 0.0}, r"coverage is 0\.0"),
        ({"max_nodes": 0}, "max_nodes is 0"),
    ):
        with pytest.raises(ValueError, match=complaint):
            mk.trace(model, TOKENS, bases, check=False, **options)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0, 10, width=32) | st.sampled_from([0.0, 1.0, 0.25]), min_size=1, max_size=60),
    threshold=st.floats(0.05, 1.0),
    cut=st.integers(0, 60),
    few=st.sampled_from([0, 1000]),
)
def test_the_largest_entries_are_those_of_a_sort(values, threshold, cut, few):
    x = torch.tensor(values)
    parts = [x[:cut], x[cut:]]
    with mock.patch("mechkit.graphs.engine.blocks._FEW", few):  # by bins, and by a sort of few
        found = largest(lambda: iter(enumerate(parts)), threshold)
    chosen = torch.cat([part[places] for part, (_, places) in zip(parts, found, strict=True)]).double()
    ordered = x.double().sort(descending=True).values
    wanted = threshold * float(ordered.sum())
    n = int((ordered.cumsum(0) < wanted * (1 - 1e-12)).sum()) + 1 if wanted else 0
    expected = ordered[: min(n, int((ordered > 0).sum()))]
    assert torch.equal(chosen.sort(descending=True).values, expected)


# --- targets


def site_value(model, site, direction=None):
    seen = {}
    with torch.no_grad(), hooked(model, [(site.hook, lambda x, hook: seen.update(x=x))]):
        model(torch.tensor([TOKENS]))
    x = seen["x"][0, site.pos]
    x = x if site.head is None else x[site.head // (model.cfg.n_heads // len(x))]
    return x.norm() if direction is None else x @ direction


SITES = [name for name in FOLLOWED if name not in ("logits", "ln_final")]


@pytest.mark.parametrize("variant", ["LayerNorm", "Llama", "Gemma 2", "folded parallel", "OLMo 2", "clipped q, k, v"])
@pytest.mark.parametrize("basis", [neurons, across], ids=["neurons", "across layers"])
def test_rows_of_any_site_sum_to_what_the_model_has_there(build, variant, basis):
    model = make(build, variant)
    names = [name for name in SITES if mk.Site(name, 1).hook in model.hook_dict]
    names = [n for n in names if not (variant == "OLMo 2" and n.startswith("ln"))]  # norms after, not before
    sites = [mk.Site(name, 1, head=1 if name in "qkvz" else None, pos=3) for name in names] + [
        mk.Site("ln_final", pos=4)
    ]
    graph = mk.trace(model, TOKENS, basis(model), targets=sites, check=False)
    rows, sizes = graph.matrix()[-len(sites) :].sum(1), graph.matrix()[-len(sites) :].abs().sum(1)
    true = torch.stack([site_value(model, site) for site in sites])
    assert float(((rows - true).abs() / sizes).max()) < FLOAT32, dict(zip(names, (rows - true).tolist(), strict=False))
    assert [node.kind for node in graph.roots] == ["target"] * len(sites)
    assert sum(node.kind == "feature" for node in graph.targets) > 10


def test_a_difference_of_logits_is_the_difference_of_their_rows(model, bases):
    graph = mk.trace(model, TOKENS, bases, targets=[3, 7, (3, 7), model.W_U[:, 3].detach()], check=False)
    first, second, difference, direction = graph.matrix()[-4:]
    torch.testing.assert_close(difference, first - second, rtol=0, atol=1e-5)
    raw = mk.trace(model, TOKENS, bases, targets=[3], centre_logits=False, check=False).matrix()[-1]
    biases = graph.weighted.of_kind("bias")
    torch.testing.assert_close(direction[~biases], raw[~biases], rtol=0, atol=1e-5)
    assert [node.name for node in graph.roots][2] == "<3> − <7>"


def test_a_feature_as_target_has_its_own_row(model, bases, graph):
    node = next(node for node in graph.targets if node.kind == "feature" and node.layer == 2)
    alone = mk.trace(model, TOKENS, bases, targets=[str(node.site)], check=False)
    row = graph.matrix()[graph.targets.index(node)]
    found = dict(zip([s.id for s in alone.sources], alone.matrix()[-1].tolist(), strict=True))
    for source, value in zip(graph.sources, row.tolist(), strict=True):
        assert found.get(source.id, 0.0) == pytest.approx(value, abs=1e-5)
    assert alone.roots[0].preactivation == pytest.approx(node.preactivation, abs=1e-5)


def test_a_direction_at_a_site_is_read_as_given(model, bases):
    direction = torch.randn(16, generator=torch.Generator().manual_seed(2))
    site = mk.Site("resid_mid", 1, pos=2)
    row = mk.trace(model, TOKENS, bases, targets=[("L1.resid_mid@2", direction)], check=False).matrix()[-1]
    assert float(row.sum()) == pytest.approx(float(site_value(model, site, direction)), abs=1e-4)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (99, "target 99 is outside the output vocabulary"),
        ("word", "the model has no tokenizer"),
        ("L9.resid_pre@0", "layers 0 to 2"),
        ("L1.resid_pre@9", "positions 0 to 4"),
        ("L1.z@0", "must name a head"),
        ("L1.pattern@0<-0", "cannot be a target"),
        ("L1.mlp_out[nothing]@0#3", "no feature"),
        (("L1.resid_pre@0", torch.ones(3)), r"has shape \[3\]"),
        (torch.ones(3), "a direction has d_model = 16"),
    ],
)
def test_a_target_that_does_not_exist_is_named(model, bases, target, complaint):
    with pytest.raises(ValueError, match=complaint):
        mk.trace(model, TOKENS, bases, targets=[target], check=False)
    with pytest.raises(ValueError, match="targets is empty"):
        mk.trace(model, TOKENS, bases, targets=[], check=False)

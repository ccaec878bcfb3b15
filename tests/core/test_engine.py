"""The sweep gives the loop's numbers, whatever the model, the edits and the metric."""

import random
from copy import deepcopy
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mechkit as mk
from mechkit.core.loop import loop
from mechkit.core.metrics import Metric, as_metric
from mechkit.core.places import expand
from mechkit.core.site import Site
from tests.core.architectures import SETTINGS, SEVERAL_LENGTHS, make
from tests.core.runs import (
    EVEN,
    RAGGED,
    draw,
    edit,
    mixed_runs,
    random_runs,
    restored,
    shapes,
    single_runs,
    unchanged_runs,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest error of a score, relative to the largest |logit| of the sweep."""

largest = Metric("largest logit", "logits", "all", lambda logits, prompts: logits.nan_to_num().abs().amax((1, 2)))


def last_rows(logits, prompts):
    return logits[torch.arange(len(prompts)), torch.tensor(prompts.lengths) - 1]


def weigh_last(logits, prompts):
    """A plain function of the last position."""
    return last_rows(logits, prompts) @ torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)


def weigh_all(logits, prompts):
    """A plain function of every position, which takes NaN for 0: padding, and whatever else is NaN."""
    n_pos, n_out = logits.shape[1:]
    weights = torch.linspace(-1, 1, n_pos * n_out, dtype=logits.dtype).reshape(n_pos, n_out)
    return (logits.nan_to_num() * weights).mean((1, 2))


LAST = [mk.logit_diff, as_metric(weigh_last)]
ALL = [mk.loss, as_metric(weigh_all), mk.logit_diff]


def base_slices(model, prompts, base=()):
    """The values of `restored` sites in the base run, by site text."""
    found = loop(model, prompts, [[]], [mk.logit_diff], list(base), restored(model))[1]
    return {str(site): values[0] for site, values in found.items()}


def assert_is_the_loop(model, prompts, runs, metrics, base=(), read=(), reference=None):
    """`sweep` and `loop` agree on every run; the loop's own scores come back."""
    wanted, slices, _ = loop(reference or model, prompts, runs, [*metrics, largest], base, read)
    found = mk.sweep(model, prompts, runs, metrics, base=base, read=read)
    tolerance = TOLERANCE[model.cfg.dtype]
    assert list(found.read) == list(slices)
    assert_close(found.scores, wanted[..., :-1], tolerance * wanted[..., -1].max().item(), runs, metrics)
    for site, values in slices.items():
        size = values[values.isfinite()].abs().max().item()
        assert_close(found.read[site], values, tolerance * max(size, 1.0), runs, site)
    return wanted[..., :-1]


def assert_close(found, wanted, tolerance, runs, what):
    assert (found.shape, found.dtype, found.device) == (wanted.shape, wanted.dtype, wanted.device)
    wrong = ~torch.isclose(found, wanted, rtol=0, atol=tolerance, equal_nan=True)
    if wrong.any():
        i, *where = wrong.nonzero()[0].tolist()
        names = what if isinstance(what, Site) else what[where[-1]].name
        pytest.fail(
            f"{int(wrong.flatten(1).any(1).sum())} of {len(runs)} runs are wrong; run {i}, "
            f"{[f'{type(edit).__name__} {edit.site}' for edit in runs[i]]}: {names} at {where} is "
            f"{found[(i, *where)].item()}, not {wanted[(i, *where)].item()} (tolerance {tolerance:.1e})"
        )


def assert_had_effect(scores, share):
    """Of the runs that `scores[run, prompt, metric]` belong to, the first unedited, so many changed something."""
    changed = ((scores - scores[:1]).abs() > 1e-6 * scores.abs().max()).flatten(1).any(1)
    assert changed[1:].float().mean() >= share


@pytest.fixture(scope="module")
def built(build):
    """Variants by name, each built once: an engine checks itself on every model that it meets."""
    return cache(lambda name: make(build, name))


DEEP = ("LayerNorm", "folded Llama", "Gemma 2", "bidirectional")
"""Architectures on which what does not depend on the architecture is tested."""


@pytest.mark.parametrize("name", SETTINGS)
def test_every_edit_on_every_architecture_is_the_loop(built, name):
    model = built(name)
    known = shapes(model, EVEN)
    singles, mixed = single_runs(known, EVEN, name, 2), mixed_runs(known, EVEN, base_slices(model, EVEN))
    if name not in DEEP:
        rng = random.Random(name)
        singles, mixed = rng.sample(singles, min(len(singles), 11)), rng.sample(mixed, 3)
    runs = [[], *singles, *mixed]
    scores = assert_is_the_loop(model, EVEN, runs, LAST)
    assert_had_effect(scores, 0.5)  # an edit of one position's keys, of a masked score, ... may do nothing at the last


@pytest.mark.parametrize("name", SEVERAL_LENGTHS)
def test_prompts_of_several_lengths_read_at_every_position_are_the_loop(built, name):
    model = built(name)
    singles = single_runs(shapes(model, RAGGED), RAGGED, f"ragged {name}", 1)
    runs = [[], *random.Random(name).sample(singles, 4)]
    scores = assert_is_the_loop(model, RAGGED, runs, ALL)
    assert_had_effect(scores, 0.6)


@pytest.mark.parametrize(("name", "prompts"), list(zip(DEEP, [EVEN, RAGGED] * 2, strict=True)))
def test_base_edits_under_all_runs_are_the_loop(built, name, prompts):
    model = built(name)
    known, texts = shapes(model, prompts), list(map(str, restored(model)))
    add = lambda text, kind="add": edit(kind, Site.parse(text), known[bare(text)], prompts)  # noqa: E731
    unedited = base_slices(model, prompts)
    attention = [add("L1.k@1"), mk.Scale("L1.q@-1", 2.0), mk.Scale("L1.v@0", -1.0), add("L1.H1.pattern@-1")]
    for base in ([add("embed@1"), mk.Scale(texts[1], 2.0)], [add(texts[0], "replace each"), *attention]):
        edited = base_slices(model, prompts, base)
        runs = [
            *unchanged_runs(edited, last=2),
            *([mk.Replace(text, unedited[text])] for text in texts),
            *([mk.Scale(text, -1.0), add("L0.q@2")] for text in texts),
            [add("L0.resid_pre@0"), mk.Replace(texts[0], unedited[texts[0]])],
            [mk.Scale("L1.q@-1", 3.0), mk.Scale("L1.H0.v@-1", 2.0)],
        ]
        assert_is_the_loop(model, prompts, runs, LAST, base)
        found = mk.sweep(model, prompts, runs, mk.logit_diff, base=base).scores
        assert all(torch.equal(found[i], found[0]) for i in (1, 3))
        assert not torch.equal(found[0], mk.sweep(model, prompts, [[]], mk.logit_diff).scores[0])


def bare(text: str) -> Site:
    return Site.parse(text).at(head=None, pos=None, src=None, index=None)


@pytest.mark.parametrize("name", DEEP)
def test_runs_that_change_nothing_are_the_unedited_run_to_the_bit(built, name):
    model = built(name)
    for prompts in (EVEN, RAGGED):
        read = mk.sweep(model, prompts, [[]], mk.logit_diff, read=restored(model)).read
        runs = unchanged_runs({str(site): values[0] for site, values in read.items()}, last=2)
        scores = mk.sweep(model, prompts, [*runs, [mk.Zero("L1.z@1")]], mk.logit_diff).scores
        assert all(torch.equal(scores[i], scores[0]) for i in range(len(runs)))
        assert not torch.equal(scores[-1], scores[0])
    half = [
        [mk.Replace(site, torch.cat([value[:1], value[1:] + draw(value[1:].shape, site)]))]
        for site, value in base_slices(model, EVEN).items()
    ]
    scores = mk.sweep(model, EVEN, [[], *half], mk.logit_diff).scores
    assert (scores[1:, 1] - scores[0, 1]).abs().min() > 1e-4
    assert (scores[1:, 0] - scores[0, 0]).abs().max() < 1e-5
    assert_is_the_loop(model, EVEN, half, ALL)


READ = ["L*.resid_pre@-1", "L1.H*.z@0", "L2.pattern@-1<-0", "L0.mlp_post@1", "L1.k@s", "ln_final@-1", "embed@0"]
READ_ALL = ["L*.resid_post", "L1.attn_scores", "L2.H0.pattern", "L0.q@1:3", "L2.mlp_pre@2#3", "L1.ln2.normalized@3"]


@pytest.mark.parametrize("name", ["LayerNorm", "folded Llama", "Gemma 2"])
def test_read_sites_are_the_loops(built, name):
    model = built(name)
    for prompts, texts in ((RAGGED, READ), (EVEN, [*READ, *READ_ALL])):
        known, slices = shapes(model, prompts), base_slices(model, prompts)
        runs = [[], *mixed_runs(known, prompts, slices)[:4], *random_runs(random.Random(name), known, prompts, 2)]
        base = [mk.Scale("L0.H0.z@-1", 2.0)]
        assert_is_the_loop(model, prompts, runs, [mk.logit_diff], base, expand(model, texts, prompts))


LAW = settings(derandomize=True, deadline=None, max_examples=6, suppress_health_check=list(HealthCheck))
"""Seeded, and without limits on time: the tests share a busy machine."""


@pytest.mark.parametrize("name", ["LayerNorm", "folded Llama", "Gemma 2", "local attention"])
@LAW
@given(seed=st.integers(0, 10**6), n_runs=st.integers(1, 5), n_base=st.integers(0, 1), ragged=st.booleans())
def test_any_list_of_runs_is_the_loop(built, name, seed, n_runs, n_base, ragged):
    model, prompts, rng = built(name), RAGGED if ragged else EVEN, random.Random(seed)
    known = shapes(model, prompts)
    base = [one for run in random_runs(rng, known, prompts, n_base) for one in run]
    metrics = rng.choice([LAST, ALL])
    read = expand(model, rng.sample(READ, rng.randrange(3)), prompts)
    assert_is_the_loop(model, prompts, random_runs(rng, known, prompts, n_runs), metrics, base, read)


@pytest.mark.parametrize("name", ["LayerNorm", "Llama", "Gemma 2"])
def test_bfloat16_is_no_further_from_float64_than_the_loop(build, name):
    model = make(build, name, dtype=torch.bfloat16)
    exact = make(build, name, dtype=torch.float64)
    exact.load_state_dict(model.state_dict())
    known, metrics = shapes(model, EVEN), [mk.logit_diff, mk.loss, as_metric(weigh_all)]
    runs = [[], *single_runs(known, EVEN, name, 1), *mixed_runs(known, EVEN, base_slices(model, EVEN))]
    truth = loop(exact, EVEN, runs, metrics, [], [])[0]
    looped = loop(model, EVEN, runs, metrics, [], [])[0]
    swept = mk.sweep(model, EVEN, runs, metrics).scores
    assert swept.dtype == looped.dtype
    errors = [(scores.double() - truth).abs().flatten() for scores in (swept, looped)]
    assert errors[1].max() > 1e-3  # bfloat16 is coarse
    assert errors[0].max() <= 1.5 * errors[1].max()
    assert errors[0].square().mean().sqrt() <= 1.5 * errors[1].square().mean().sqrt()


@pytest.mark.parametrize("name", ["LayerNorm", "Llama", "Gemma 2", "OLMo 2", "float64"])
def test_edits_of_head_results_are_those_of_a_model_that_computes_them(built, name):
    model = built(name)
    computing = deepcopy(model)
    computing.set_use_attn_result(True)
    for prompts in (EVEN, RAGGED) if name == "Llama" else (EVEN,):
        known = {site: shape for site, shape in shapes(computing, prompts).items() if site.name in ("result", "z", "q")}
        result = Site("result", layer=1)
        places = [result.at(head=head, pos=pos) for head in (None, 0, 1) for pos in (None, 0, -1, "s")]
        kinds = ["zero", "replace each", "add", "scale", "mean", "noise", "project", "flip", "add each", "replace"] * 2
        runs = [[edit(kind, site, known[result], prompts)] for kind, site in zip(kinds, places, strict=False)]
        runs += [[mk.Zero("L0.H1.z"), mk.Zero("L0.H1.result@-1"), mk.Scale("L2.H0.result@0", 3.0)]]
        runs += random_runs(random.Random(name), known, prompts, 6)
        scores = assert_is_the_loop(model, prompts, [[], *runs], ALL, reference=computing)
        assert_had_effect(scores, 0.6)
        read = expand(model, ["L*.H*.result@-1", "L2.result@0"], prompts)
        assert_is_the_loop(model, prompts, runs[-7:], [mk.logit_diff], [runs[0][0]], read, computing)
    assert not model.cfg.use_attn_result

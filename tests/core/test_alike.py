"""Replacements that are made together give the loop's numbers, and those that cannot go one by one."""

import numpy as np
import pytest
import torch

import mechkit as mk
from mechkit.core.engine.agenda import Agenda
from mechkit.core.interventions import Replace
from mechkit.core.loop import loop
from mechkit.core.places import expand
from tests.core.runs import EVEN, RAGGED, draw

N = len(EVEN)


class Doubled(Replace):
    """A subclass that does something else than put its value in: it must not be taken for a `Replace`."""

    def edit(self, x, prompts, place):
        return 2 * super().edit(x, prompts, place)


def places_of_a_layer(pos):
    """One run for every form of value, at every kind of place, with values of their own."""
    shapes = {"z@{}": (2, 8), "H{}.z": (5, 8), "H{}.z@1": (8,), "resid_pre@{}": (16,), "H{}.pattern@2": (5,)}
    for text, shape in shapes.items():
        site = "L0." + text.format(pos)
        for form in ((), shape, (1, *shape), (N, *shape), (3, *shape)):
            yield Replace(site, draw(form, site, form))
    for text in (f"L0.H{pos}.pattern@3<-{pos}", f"L0.mlp_post@{pos}#4", f"L0.H{pos}.k@1:3#2", f"L0.H{pos}.q#2"):
        yield Replace(text, draw((), text))
        yield mk.Zero(text)


RUNS = [[edit] for pos in (0, 1) for edit in places_of_a_layer(pos)]


def check(model, prompts, runs):
    """Every score and every read slice of a sweep against the loop's."""
    read = "L1.resid_post@-1"
    found = mk.sweep(model, prompts, runs, mk.logit_diff, read=read)
    scores, slices, _ = loop(model, prompts, runs, [mk.logit_diff], [], expand(model, read))
    assert torch.allclose(found.scores, scores[..., 0], atol=1e-5, rtol=0)
    assert torch.allclose(found.read[expand(model, read)[0]], next(iter(slices.values())), atol=1e-5, rtol=0)
    assert (found.scores - found.scores[0]).abs().max() > 1e-3  # the edits do something


def test_every_form_of_value_gives_the_loops_numbers(model):
    check(model, EVEN, RUNS)
    check(model, EVEN[[1]], [[edit] for (edit,) in RUNS if getattr(edit, "value", torch.zeros(())).shape[:1] != (N,)])


def test_the_same_places_make_one_set(model):
    stage = (0, "z")
    agenda = Agenda(RUNS, [], [], EVEN, [0, 1])
    found, of = agenda.alike(stage, torch.Size((N, 5, 2, 8)))
    mine = [i for i, (edit,) in enumerate(RUNS) if edit.site.name == "z"]
    assert (of[mine] >= 0).all()
    assert (of >= 0).sum() == len(mine)
    assert len(found) == 3 * 5  # kinds of place by forms of value, the two positions and heads together
    assert all(len(alike) == 2 for alike in found)
    for alike in found:
        row, number = alike.of_rows(np.array([3, *alike.runs, *alike.runs]))
        assert alike.runs[number].tolist() == [run for run in [3, *alike.runs, *alike.runs] if run in alike.runs]
        assert (np.array([3, *alike.runs, *alike.runs])[row] == alike.runs[number]).all()


def test_what_needs_more_than_a_write_goes_one_by_one(model):
    wide = draw((8,), "wide")
    runs = [
        [Doubled("L0.H0.z@1", wide)],
        [Replace("L0.H0.z@1", wide), Replace("L0.H0.z@1", 2 * wide)],
        [Replace("L0.z@1", wide)],  # one value for both heads
        [mk.Add("L0.H0.z@1", wide)],
        [Replace("L0.H0.z@1", wide), mk.Scale("L0.H1.z@1", 3.0)],
        [Replace("L0.H0.z", wide.expand(5, 8)), Replace("L0.H0.z@1", 2 * wide)],  # of two forms
    ]
    found, of = Agenda(runs, [], [], EVEN, [0, 1]).alike((0, "z"), torch.Size((N, 5, 2, 8)))
    assert not found
    assert (of == -1).all()
    check(model, EVEN, [*runs, *RUNS[:3]])


def test_several_places_of_a_run_go_together(model):
    runs = [
        [Replace(f"L0.H{head}.{name}", draw((5, 8), head, name, n)) for head in heads]
        for n, heads in enumerate(((0, 1), (1,), (1, 0)))
        for name in ("z", "q", "k")
    ]
    found, of = Agenda(runs, [], [], EVEN, [0, 1]).alike((0, "q"), torch.Size((N, 5, 2, 8)))
    assert [alike.runs.tolist() for alike in found] == [[1, 1, 4, 7, 7]]
    assert (of >= 0).nonzero()[0].tolist() == [1, 4, 7]
    check(model, EVEN, runs)


def test_prompts_of_several_lengths_and_edits_before_and_under(model):
    at_last = [[Replace(f"L{layer}.H{head}.z@-1", draw((3, 8), layer, head))] for layer in (0, 1) for head in (0, 1)]
    spans = [[Replace("L0.resid_pre@s", draw((2, 16), "span"))], [mk.Zero("L0.H1.pattern@-1<-0")]]
    check(model, RAGGED, at_last + spans)
    twice = [[mk.Scale("L0.mlp_out", -1.0), edit] for (edit,) in RUNS]
    check(model, EVEN, twice)
    base = [mk.Scale("L0.z", 0.5), mk.Scale("L0.resid_pre", -1.0)]
    found = mk.sweep(model, EVEN, RUNS, mk.logit_diff, base=base).scores
    assert torch.allclose(found, loop(model, EVEN, RUNS, [mk.logit_diff], base, [])[0][..., 0], atol=1e-5, rtol=0)


def test_values_of_the_run_itself_are_no_runs(model):
    cache = model.run_with_cache(EVEN.tokens)[1]
    runs = [[Replace(f"L0.H{head}.z@{pos}", cache["z", 0][:, pos, head])] for head in (0, 1) for pos in range(5)]
    assert mk.sweep(model, EVEN, runs, mk.logit_diff).n_rows == 0
    changed = cache["z", 0][:, 2, 0].clone()
    changed[1, 3] += 1e-6
    found = mk.sweep(model, EVEN, [*runs, [Replace("L0.H0.z@2", changed)]], mk.logit_diff)
    assert found.n_rows == 1  # of two prompts, one


def test_more_runs_than_are_compared_at_a_time(model, monkeypatch):
    monkeypatch.setattr("mechkit.core.engine.alike._BYTES", 100)
    check(model, EVEN, RUNS)


def test_a_value_with_too_few_prompts_is_an_error(model):
    three = mk.Prompts.from_tokens([[3, 1, 4]] * 3, [1, 2, 3], [5, 6, 7])
    with pytest.raises(ValueError, match="has 2 prompts, and prompt 2 needs one"):
        mk.sweep(model, three, [[Replace("L0.z@1", torch.zeros(2, 2, 8))]], mk.logit_diff)

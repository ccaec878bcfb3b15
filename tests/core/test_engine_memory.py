"""A sweep stays under the memory it is given, goes on when memory runs out, and says beforehand what it will take."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mechkit as mk
from mechkit.core.engine import general, lean
from mechkit.core.loop import loop
from tests.core.runs import EVEN

RUNS = [[mk.Scale(f"L{layer}.H{head}.z@{pos}", 0.5)] for layer in (0, 1) for head in (0, 1) for pos in (0, 1, 2)]


@pytest.mark.parametrize("limit", [pytest.param(60_000_000, marks=pytest.mark.slow), 200_000_000])
def test_two_thousand_runs_stay_under_the_limit(limit):
    script = Path(__file__).with_name("memory_of_a_sweep.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(limit)], capture_output=True, text=True, check=True
    )
    n_runs, passes, peak = map(int, done.stdout.split())
    assert n_runs == 2000
    assert passes > 2  # all at once would not have fitted
    assert limit / 10 < peak < limit


def test_a_limit_that_one_run_exceeds_is_an_error(model):
    with pytest.raises(ValueError, match=r"memory=1,000 bytes is too little for this sweep, which takes about"):
        mk.sweep(model, EVEN, RUNS, mk.logit_diff, memory=1000)
    with pytest.raises(ValueError, match="memory is 0 bytes"):
        mk.sweep(model, EVEN, RUNS, mk.logit_diff, memory=0)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
@pytest.mark.parametrize("engine", ["lean", "general"])
def test_where_memory_runs_out_the_runs_go_on_in_halves(model, monkeypatch, engine, error):
    where, site = (lean.Lean, "L0.z@1") if engine == "lean" else (general.General, "L0.ln2.normalized@1")
    runs = [*RUNS, [mk.Zero(site)]] if engine == "lean" else [[mk.Scale(site, 1.0 + i)] for i in range(9)]
    wanted, _, _ = loop(model, EVEN, runs, [mk.logit_diff], [], [])
    mk.sweep(model, EVEN, runs[:1], mk.logit_diff)  # the check of the model is not what runs out
    inner, tried = where._scores, []

    def scores(self, part):
        tried.append(len(part))
        if len(part) > 2:
            raise error
        return inner(self, part)

    monkeypatch.setattr(where, "_scores", scores)
    found = mk.sweep(model, EVEN, runs, mk.logit_diff)
    assert found.path == engine
    torch.testing.assert_close(found.scores, wanted[..., 0], rtol=0, atol=1e-4)
    assert max(tried) > 2 >= min(tried)


def test_one_run_that_does_not_fit_is_an_error_that_says_so(model, monkeypatch):
    def scores(self, part):
        raise MemoryError

    monkeypatch.setattr(lean.Lean, "_scores", scores)
    with pytest.raises(MemoryError, match="memory ran out on a single run"):
        mk.sweep(model, EVEN, RUNS, mk.logit_diff)


def test_other_errors_are_not_taken_for_a_lack_of_memory(model, monkeypatch):
    def scores(self, part):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(lean.Lean, "_scores", scores)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        mk.sweep(model, EVEN, RUNS, mk.logit_diff)


def test_a_plan_bounds_what_the_sweep_does(model):
    made, swept = mk.plan(model, EVEN, RUNS, mk.logit_diff), mk.sweep(model, EVEN, RUNS, mk.logit_diff)
    assert (made.n_runs, made.n_prompts, made.path, made.why) == (12, len(EVEN), "lean", None)
    assert made.passes >= swept.passes == 2
    assert made.flops < made.loop_flops
    assert "12 runs" in str(made)


def test_a_plan_grows_with_the_runs_and_falls_with_later_edits(model):
    flops = lambda *runs: mk.plan(model, EVEN, [list(run) for run in runs], mk.logit_diff).flops  # noqa: E731
    assert flops() < flops([mk.Zero("L1.z@-1")]) < flops([mk.Zero("L0.z@-1")]) < flops([mk.Zero("L0.z@0")])
    assert mk.plan(model, EVEN, RUNS).flops > mk.plan(model, EVEN, RUNS, mk.logit_diff).flops


def test_a_plan_says_what_is_not_lean(model):
    made = mk.plan(model, EVEN, [*RUNS, [mk.Zero("L0.ln2.normalized@1")]], mk.logit_diff)
    assert (made.path, made.why) == ("lean+general", "it edits or reads sites the lean layers do not know")
    with pytest.raises(ValueError, match=r"no site 'L9\.z'"):
        mk.plan(model, EVEN, [[mk.Zero("L9.z")]])


def test_plans_keep_memory_under_the_limit(model):
    few, many = (mk.plan(model, EVEN, RUNS * 50, mk.logit_diff, memory=limit) for limit in (400_000, 400_000_000))
    assert few.passes > many.passes == 2
    assert few.memory <= 400_000

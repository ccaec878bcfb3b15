"""The figure script writes every figure and prints what `patch` gives."""

import runpy
from pathlib import Path

import pytest
import typer

import mechkit as mk

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "patching_heatmaps.py"))


def test_it_writes_every_figure_and_its_scores(tmp_path, capsys, addition):
    SCRIPT["main"](out=tmp_path, sums=2, seed=3, model="addition", clean=None, corrupt=None, by_position=True, top=2)
    names = [*SCRIPT["FIGURES"], *SCRIPT["BY_POSITION"]]
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(f"{name}.{kind}" for name in names for kind in ("png", "html", "parquet", "safetensors"))
    found = mk.Result.load(tmp_path / "resid_pre.parquet")
    pair = mk.tasks.addition(2, 3)
    assert (found.scores - mk.patch(addition, pair, "L*.resid_pre@*", mk.logit_diff).scores).abs().max() < 1e-4
    printed = capsys.readouterr().out
    assert "L0.resid_pre@2" in printed
    assert "100%" in printed
    assert "2: b" in (tmp_path / "resid_pre.html").read_text()


@pytest.mark.parametrize("given", [{"clean": "1+2="}, {"model": "gpt2"}])
def test_a_pair_needs_both_prompts_and_other_models_a_pair(given):
    wanted = {"name": given.get("model", "addition"), "clean": given.get("clean")}
    with pytest.raises(typer.BadParameter, match="--clean and --corrupt"):
        SCRIPT["pair_of"](None, corrupt=None, sums=1, seed=0, **wanted)

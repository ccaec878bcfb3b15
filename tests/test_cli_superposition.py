"""`mechkit superposition measure`: what it prints and writes, that its numbers are `measure_model`'s, clear errors."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import mechkit as mk
from mechkit.cli import run
from mechkit.viz.superposition_png import superposition_png

ROOT = Path(__file__).parents[1]
FILES = ["superposition.parquet", "superposition.png"]
TRANSCODERS = ROOT / "mechkit/zoo/addition/transcoders/layer_1"
FAST = ["--draws", "40", "--sample", "64"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The command in a process of its own, as a user runs it."""
    out = tmp_path_factory.mktemp("measure")
    command = [sys.executable, "-W", "ignore", "-m", "mechkit", "superposition", "measure", *FAST]
    command += ["--sae", str(TRANSCODERS), "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False), out


def test_it_prints_a_row_for_each_matrix_and_what_may_be_concluded(measured):
    done, out = measured
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    for start in (["embed", "W_E", "209", "128"], ["L1.mlp_post", "W_out", "512", "128"], ["ln_final", "W_U", "209"]):
        assert start in [row[: len(start)] for row in rows]
    assert "L1.mlp_out[transcoders/layer_1]" in done.stdout
    assert "Weights show capacity, not storage" in done.stdout
    assert "overlap more than random directions do" in done.stdout
    for name in FILES:
        assert f"wrote {out / name}" in done.stdout


def test_it_writes_the_table_and_a_picture(measured, addition):
    _, out = measured
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert (out / FILES[1]).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    saved = pd.read_parquet(out / FILES[0])
    row = saved[(saved["name"] == "mlp_post") & (saved["layer"] == 0)].squeeze()
    report = mk.measure_superposition(addition.W_out[0], nulls=())
    assert row["max_cosine"] == pytest.approx(report.max_cosine, rel=1e-6)
    assert row["features_per_dimension"] == pytest.approx(report.features_per_dimension, rel=1e-6)


def test_json_output_is_one_object_with_every_matrix(tmp_path, capsys):
    assert run(["superposition", "measure", "--json", "--seed", "3", *FAST, "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["seed"], found["draws"]) == ("addition", 3, 40)
    assert found["wrote"] == [str(tmp_path / name) for name in FILES]
    by_name = {(row["site"], row["matrix"]): row for row in found["matrices"]}
    assert by_name["embed", "W_E"]["n_features"] == 209
    assert "mean_cosine" not in by_name["L0.H1.z", "OV"]  # what a row has not is left out, not NaN
    assert any("capacity" in sentence for sentence in found["conclusions"])


BAD = {
    "no such model": (["--model", "no-such-model"], "no-such-model"),
    "no such dictionary": (["--sae", "absent"], "no dictionary in 'absent'"),
    "no such folder": (["--out", "absent"], "there is no folder"),
    "no such device": (["--device", "banana"], "no device 'banana'"),
    "too few draws for any p": (["--draws", "5"], "--draws"),
    "a word for a number": (["--seed", "x"], "--seed"),
}


@pytest.mark.parametrize(("arguments", "named"), BAD.values(), ids=BAD)
def test_what_the_user_can_mend_is_one_line_and_status_two(arguments, named, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["superposition", "measure", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert named in printed.err
    assert list(tmp_path.iterdir()) == []


def test_the_figure_script_measures_models_and_their_random_control(tmp_path, capsys):
    script = runpy.run_path(str(ROOT / "scripts" / "superposition_of_models.py"))
    script["main"](
        model=["addition"], sae=None, control=True, draws=40, sample=64, seed=0, device=None, out=tmp_path
    )  # fmt: skip
    names = ("superposition_addition", "superposition_addition_random")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{n}.{e}" for n in names for e in ("parquet", "png")
    )
    trained, random = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in names)
    assert (trained["random_mean_square_p"].dropna() < 0.06).mean() > 0.9
    assert (random["random_mean_square_p"].dropna() < 0.06).mean() < 0.3
    assert "random weights" in capsys.readouterr().out


def test_a_model_without_layers_or_significance_is_drawn():
    nothing = torch.nan
    rows = pd.DataFrame({"layer": pd.array([None], dtype="Int64"), "matrix": ["W_E"], "features_per_dimension": [2.0],
                         "random_mean_square": [nothing], "random_mean_square_p": [nothing],
                         "covariance_nearest": [nothing], "covariance_nearest_p": [nothing]})  # fmt: skip
    assert superposition_png(rows, "one $matrix")[:4] == b"\x89PNG"

"""The figure scripts and the command run, and set what was measured beside what was published."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from mechkit.cli import run
from mechkit.superposition.toy import Toys, Trained, Weights, by_sparsity, instances
from mechkit.superposition.toy.sparsity import SIZES
from scripts import (
    superposition_absolute,
    superposition_adversarial,
    superposition_basic,
    superposition_correlated,
    superposition_dimensions,
    superposition_facts,
    superposition_geometry,
    superposition_memorisation,
    superposition_phase,
)


@pytest.fixture
def tiny(monkeypatch):
    """Every size so small that a script runs in a second."""
    monkeypatch.setitem(SIZES, "quick", (12, 3, 4, 60, (1.0, 10.0)))
    monkeypatch.setitem(superposition_basic.SIZES, "small", (8, 2, 0.7))
    monkeypatch.setitem(superposition_memorisation.SIZES, "quick", (20, 0.2, 40, 1, (3, 5, 8, 12, 20, 30)))
    monkeypatch.setattr(superposition_facts, "QUICK", ((1, 2), (4, 16), 20))
    for name, value in (("N", 6), ("M", 4), ("QUICK", 30)):
        monkeypatch.setattr(superposition_absolute, name, value)


SCRIPTS = {
    "basic_small": lambda out: superposition_basic.main("small", 30, 0, None, out),
    "geometry": lambda out: superposition_geometry.main("quick", None, None, 0, None, out),
    "dimensions": lambda out: superposition_dimensions.main(None, "quick", None, 0, None, out),
    "adversarial": lambda out: superposition_adversarial.main(None, "quick", 32, 0, None, out),
    "phase_2": lambda out: superposition_phase.main(2, 4, 2, 0, 0, None, out),
    "correlated": lambda out: superposition_correlated.main(1, 20, None, out),
    "absolute": lambda out: superposition_absolute.main(True, 0, None, out),
    "memorisation": lambda out: superposition_memorisation.main("quick", 0, "cpu", out),
    "facts": lambda out: superposition_facts.main(True, 1, "relu", "cpu", out),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_draws_its_figure_and_sets_it_beside_what_was_published(name, tiny, tmp_path, capsys):
    SCRIPTS[name](tmp_path / "figures")
    said = capsys.readouterr().out
    assert said.count("published: ") == said.count("measured: ") >= 3
    path = tmp_path / "figures" / f"superposition_{name}"
    assert path.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    assert len(pd.read_parquet(path.with_suffix(".parquet")))
    assert str(path.with_suffix(".png")) in said


def test_toys_of_one_script_serve_the_others(tiny, tmp_path, capsys):
    superposition_geometry.main("quick", None, None, 0, None, tmp_path)
    kept = tmp_path / "superposition_geometry.safetensors"
    first = superposition_geometry.dimensions(Trained.load(kept))
    superposition_geometry.main("quick", None, kept, 0, None, tmp_path)
    again = pd.read_parquet(tmp_path / "superposition_geometry.parquet")
    assert np.array_equal(first.to_numpy(), again.to_numpy())
    with pytest.raises(ValueError, match="size is one of"):
        by_sparsity("huge")
    with pytest.raises(ValueError, match="at least 2"):
        by_sparsity("quick", n_instances=1)


def arranged(rows):
    """One trained toy whose features are `rows`, at a density of a half."""
    W = torch.tensor(rows).T[None]
    toys: Toys = instances(W.shape[2], W.shape[1], probability=0.5)
    return Trained(toys, Weights(W, torch.zeros(1, W.shape[2])), torch.ones(1, 1), 1, torch.ones(1, dtype=torch.int64))


def test_the_geometry_lines_count_the_features_that_lie_on_them():
    turn = 2 * torch.pi * torch.arange(5) / 5
    pentagons = torch.block_diag(*[torch.stack([turn.cos(), turn.sin()], 1)] * 2).tolist()
    pairs = torch.block_diag(*[torch.tensor([[1.0], [-1.0]])] * 4).tolist()
    of = {
        name: {
            claim.what: claim for claim in superposition_geometry.claims(superposition_geometry.dimensions(arranged(x)))
        }
        for name, x in (("pentagons", pentagons), ("pairs", pairs))
    }
    met = {name: [claim.what.split(",")[0] for claim in claims.values() if claim.met] for name, claims in of.items()}
    assert met == {"pentagons": ["line of the pentagon"], "pairs": []}  # eight features are too few to count
    assert of["pairs"]["line of the antipodal pair, D = 0.5"].measured.startswith("8 features")


def test_learned_features_are_counted_at_every_density():
    densities = superposition_basic.DENSITIES
    toys = instances(8, 2, probability=torch.tensor(densities)[:, None])
    W, ones = torch.eye(2, 8).repeat(len(densities), 1, 1), torch.ones(1, len(densities))
    trained = Trained(toys, Weights(W, torch.zeros(len(densities), 8)), ones, 1, ones[0].long())
    table = pd.concat([superposition_basic.rows(trained, kind) for kind in ("relu", "linear")])
    linear, _, relu, _ = superposition_basic.claims(table, 8, 2)
    assert linear.measured.startswith("2, 2, 2, 2, 2, 2, 2;")
    assert linear.met
    assert relu.measured == "2, 2, 2, 2, 2, 2, 2"


def test_a_feature_is_computed_where_both_signs_are(monkeypatch):
    monkeypatch.setattr(superposition_absolute, "DENSITIES", (1.0,))
    toys = instances(3, 4, kind="absolute")
    read = torch.tensor([[2.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    write = torch.tensor([[0.5, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])  # of the second feature one sign alone
    weights = Weights(read[None], torch.zeros(1, 3), write[None])
    trained = Trained(toys, weights, torch.ones(1, 1), 1, torch.ones(1, dtype=torch.int64))
    found = superposition_absolute.measured(trained).iloc[0]
    assert (found["features_computed"], found["neurons_used"], found["monosemantic"]) == (1, 3, 1)


def command(capsys, *arguments):
    assert run(["superposition", "toy", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_trains_toys_and_says_what_they_store(tmp_path, capsys):
    arguments = ["--features", "4", "--hidden", "2", "--density", "0.05", "--density", "1", "--seeds", "3"]
    options = ["--nodes", "3", "--steps", "400", "--rate", "0.03", "--out", str(tmp_path)]
    found = command(capsys, *arguments, *options)
    assert (found["n_features"], found["d_hidden"], len(found["instances"])) == (4, 2, 6)
    assert [round(row["density"], 3) for row in found["instances"]] == [0.05] * 3 + [1] * 3
    assert max(row["stored"] for row in found["instances"][:3]) == 4  # two antipodal pairs
    assert {path.split("/")[-1] for path in found["wrote"]} == {path.name for path in tmp_path.iterdir()}
    kept = Trained.load(tmp_path / "toys.safetensors")
    assert kept.loss.tolist() == pytest.approx([row["loss"] for row in found["instances"]])
    assert run(["superposition", "toy", *arguments, *options]) == 0
    said = capsys.readouterr().out
    assert "6 toys, 4 features in 2 dimensions" in said
    assert str(tmp_path / "toys.png") in said


def test_the_command_says_in_one_line_what_can_be_mended(tmp_path, capsys):
    for wrong, words in ((["--density", "2"], "above 0 and at most 1"), (["--kind", "gelu"], "kind is one of")):
        assert run(["superposition", "toy", *wrong, "--out", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert run(["superposition", "toy", "--out", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err

"""Dictionaries that SAELens trains: they find features that are there, and a run that was cut off ends the same."""

import json

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from mechkit.dictionaries import sae_training
from mechkit.dictionaries.sae_training import Plan, Side, drawn, train_mlp_transcoder, train_sae, unscaled

D, N_TRUE = 24, 32
PLAN = Plan(d_features=48, l0=3, n_rows=60_000, batch=256, learning_rate=8e-3, dead_after=30)


def world(seed=0):
    """True directions, and rows that are sparse sums of them off the origin."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(N_TRUE, D, generator=generator), dim=1)
    active = (torch.rand(20_000, N_TRUE, generator=generator) < 3 / N_TRUE).float()
    active *= 1 + torch.rand(active.shape, generator=generator)
    return directions, active, 5.0 * active @ directions + 2.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae") / "one"
    train_sae(folder, world()[2].half(), PLAN, metadata={"hook_name": "blocks.0.hook_resid_post", "processing": "none"})
    return folder


def explained(rebuilt, y):
    return float(1 - (rebuilt - y).square().sum() / (y - y.mean(0)).square().sum())


@torch.no_grad()
def test_an_sae_finds_the_true_directions(trained):
    directions, _, rows = world()
    sae = SAE.load_from_disk(trained)
    likeness = torch.nn.functional.normalize(sae.W_dec, dim=1) @ directions.T
    assert float(likeness.amax(0).median()) > 0.85
    assert explained(sae(rows), rows) > 0.75
    assert 2 < float((sae.encode(rows) > 0).float().sum(1).mean()) < 4.5
    start = torch.nn.functional.normalize(torch.randn(48, D, generator=torch.Generator().manual_seed(9)), dim=1)
    assert float((start @ directions.T).amax(0).median()) < 0.7  # nothing to do with training


def test_it_is_stored_in_float16_as_jumprelu_with_its_metadata(trained):
    tensors, cfg = load_file(trained / "sae_weights.safetensors"), json.loads((trained / "cfg.json").read_text())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert (cfg["architecture"], cfg["dtype"], cfg["normalize_activations"]) == ("jumprelu", "float32", "none")
    assert cfg["metadata"]["processing"] == "none"
    assert sorted(path.name for path in trained.parent.iterdir()) == ["one"]
    assert SAE.load_from_disk(trained).W_enc.dtype == torch.float32


@torch.no_grad()
def test_a_transcoder_rebuilds_outputs_from_inputs(tmp_path):
    _, active, x = world()
    writes = torch.randn(N_TRUE, 10, generator=torch.Generator().manual_seed(5))
    y = 0.1 * active @ writes - 3.0
    metadata = {"hook_name": "blocks.0.ln2.hook_normalized", "hook_name_out": "blocks.0.hook_mlp_out"}
    train_mlp_transcoder(tmp_path / "layer_0", x.half(), y.half(), PLAN, metadata=metadata)
    found = SAE.load_from_disk(tmp_path / "layer_0")
    assert found.cfg.architecture() == "jumprelu_transcoder"
    assert found.cfg.metadata.hook_name_out == "blocks.0.hook_mlp_out"
    assert explained(found(x), y) > 0.85
    assert 2 < float((found.encode(x) > 0).float().sum(1).mean()) < 4.5
    linear = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
    assert explained(found(x), y) > explained(torch.cat([x, torch.ones(len(x), 1)], 1) @ linear, y) + 0.05


def test_folding_centres_and_scales_changes_no_output():
    generator = torch.Generator().manual_seed(2)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = {
        "W_enc": normal(6, 9),
        "b_enc": normal(9),
        "W_dec": normal(9, 4),
        "b_dec": normal(4),
        "threshold": normal(9),
    }
    tensors["threshold"] = tensors["threshold"].abs()
    x, y = Side(normal(50, 6), normal(6), 3.0), Side(normal(50, 4), normal(4), 0.2)

    def output(t, rows):
        pre = rows @ t["W_enc"] + t["b_enc"]
        return (pre.relu() * (pre > t["threshold"])) @ t["W_dec"] + t["b_dec"]

    wanted = output(tensors, (x.rows - x.centre) / x.scale) * y.scale + y.centre
    assert torch.allclose(output(unscaled(tensors, x, y), x.rows), wanted, atol=1e-12)
    assert torch.equal(unscaled(tensors, x, y)["W_dec"], tensors["W_dec"])


def test_batches_depend_on_their_number_alone_and_keep_sides_together():
    x = torch.arange(300.0)[:, None]
    batches, later = drawn([Side(x), Side(2 * x)], 50, 7), drawn([Side(x), Side(2 * x)], 50, 7, start=2)
    first, second, third = (next(batches) for _ in range(3))
    assert torch.equal(third, next(later))
    assert not torch.equal(first, second)
    assert torch.equal(first[:, 1], 2 * first[:, 0])
    side = Side.standard(torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * 4 + 9, 0)
    chosen = side[torch.arange(5000)]
    assert float(chosen.mean().abs()) < 0.05
    assert float(chosen.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits_and_the_same_random_state(tmp_path, monkeypatch, kind):
    _, _, rows = world()
    plan = Plan(d_features=32, l0=3, n_rows=6000, batch=100, dead_after=10, n_checkpoints=3)

    def train(path, runs=None):
        if kind == "sae":
            train_sae(tmp_path / path, rows, plan, runs=runs)
        else:
            train_mlp_transcoder(tmp_path / path, rows, rows[:, :5], plan, runs=runs)

    state = torch.random.get_rng_state()
    train("whole")
    assert torch.equal(state, torch.random.get_rng_state())

    def breaks(sides, batch, seed, start=0):
        for number, found in enumerate(drawn(sides, batch, seed, start)):
            if number == 50:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(sae_training, "drawn", breaks)
    with pytest.raises(KeyboardInterrupt):
        train("again", tmp_path / "runs")
    assert not (tmp_path / "again").exists()
    assert list((tmp_path / "runs").glob("*/trainer_state.pt"))
    starts = []

    def watched(sides, batch, seed, start=0):
        starts.append(start)
        return drawn(sides, batch, seed, start)

    monkeypatch.setattr(sae_training, "drawn", watched)
    train("again", tmp_path / "runs")
    assert starts[0] >= 15  # it did go on
    weights = [load_file(tmp_path / name / "sae_weights.safetensors") for name in ("whole", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

"""The walk back from the answer, end to end."""

import pytest
import torch

import mechkit as mk
from scripts import ioi_path_patching as script


def test_the_walk_on_sums_writes_a_table_and_a_picture_a_step(tmp_path, capsys):
    script.main("addition", prompts=6, seed=1, out=tmp_path, top=3)
    said = capsys.readouterr().out
    assert "sums a+b=, corrupt in b, by the addition model, 6 pairs" in said
    assert "heads to the logits, deltas" in said
    assert "heads to the queries of 1." in said
    found = mk.Result.load(tmp_path / "to_logits.parquet")
    pair = mk.tasks.addition(6, 1)
    direct = mk.path_patch(mk.load("addition"), pair, "L*.H*.z", "logits", mk.logit_diff)
    assert torch.equal(found.scores, direct.scores)
    assert (tmp_path / "to_logits.png").read_bytes().startswith(b"\x89PNG")


def test_the_walk_on_names_reaches_keys_and_values(gpt2_like, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mk, "load", lambda name: gpt2_like, raising=False)
    script.main("gpt2", prompts=4, seed=0, out=tmp_path, top=3)
    said = capsys.readouterr().out
    assert "indirect objects, corrupt by three other names, by gpt2, 4 pairs" in said
    assert said.count("wrote") == len(list(tmp_path.glob("*.png"))) >= 2


def test_where_gpt2_is_out_of_reach_the_run_says_what_it_is_on(tmp_path, capsys, monkeypatch):
    real = mk.load

    def load(name):
        if name in ("gpt2", "another"):
            raise OSError("no network")
        return real(name)

    monkeypatch.setattr(mk, "load", load, raising=False)
    script.main("gpt2", prompts=2, seed=0, out=tmp_path, top=1)
    said = capsys.readouterr().out
    assert "gpt2 is out of reach (no network); this run is on 'tinyworld'" in said
    assert "indirect objects, corrupt by three other names, by tinyworld, 2 pairs" in said
    assert "the wrong answer leads on 0.0%" in said
    with pytest.raises(OSError, match="no network"):
        script.main("another", out=tmp_path)


def test_a_key_value_head_stands_for_the_heads_that_share_it(build):
    model = build(n_heads=4, d_head=4, n_key_value_heads=2)
    heads = [mk.Site.parse(text) for text in ("L1.H2.z", "L1.H3.z", "L1.H0.z")]
    steps = {step.name: step for step in script.STEPS}
    names = lambda step: [str(site) for site in script.inputs_of(model, heads, steps[step])]  # noqa: E731
    assert names("to_queries") == ["L1.H2.q@-1", "L1.H3.q@-1", "L1.H0.q@-1"]
    assert names("to_keys_and_values") == ["L1.H1.k", "L1.H1.v", "L1.H0.k", "L1.H0.v"]

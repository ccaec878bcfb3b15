"""`mechkit patch`: what it prints and writes, that its numbers are `patch`'s, and one line for what can be mended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mechkit as mk
from mechkit.cli import run

ROOT = Path(__file__).parents[1]
PAIR = ["--clean", "35+59=", "--corrupt", "35+51="]
FILES = ["patch.html", "patch.parquet", "patch.png", "patch.safetensors"]


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """`mechkit patch` in a process of its own, as a user runs it."""
    out = tmp_path_factory.mktemp("patch")
    command = [sys.executable, "-W", "ignore", "-m", "mechkit", "patch", *PAIR, "--sites", "L*.resid_pre@*"]
    return subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    ), out  # fmt: skip


def summary(capsys, *arguments):
    assert run(["patch", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_prints_the_pair_its_metric_and_the_strongest_sites(patched):
    done, _ = patched
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert ["clean", "35+59=", "94", "logit_diff"] in [line[:4] for line in lines]
    assert ["corrupt", "35+51=", "86", "logit_diff"] in [line[:4] for line in lines]
    best = next(line for line in lines if line[0] == "L0.resid_pre@2")
    assert best[1] == "59"
    assert best[-1] == "100%"  # the token that differs, before any layer, is the whole difference


def test_it_writes_a_page_a_picture_and_the_result(patched):
    done, out = patched
    assert sorted(path.name for path in out.iterdir()) == FILES
    for name in FILES:
        assert str(out / name) in done.stdout
    assert (out / "patch.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = (out / "patch.html").read_text()
    for text in ("35+59=", "2: 59", "logits", "Content-Security-Policy"):
        assert text in page
    assert "src=" not in page.split("<script")[0]


def test_its_numbers_are_those_of_patch(patched, addition):
    saved = mk.Result.load(patched[1] / "patch.parquet")
    pair = mk.Pair.from_text(addition, "35+59=", "35+51=")
    wanted = mk.patch(addition, pair, "L*.resid_pre@*", mk.logit_diff)
    torch.testing.assert_close(saved.scores, wanted.scores, rtol=0, atol=1e-4)  # logits of about 20, other threads
    assert saved.labels == wanted.labels


def test_json_output_is_one_object_with_the_strongest_sites_first(tmp_path, capsys):
    found = summary(capsys, *PAIR, "--sites", "L*.H*.z@-1", "--top", "3", "--out", str(tmp_path))
    assert (found["clean"]["answer"], found["corrupt"]["answer"], found["n_sites"]) == ("94", "86", 8)
    assert found["gap"] == pytest.approx(found["clean"]["metric"] - found["corrupt"]["metric"], abs=1e-4)
    sizes = [abs(site["score"]) for site in found["top"]]
    assert len(sizes) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert found["wrote"][0] == str(tmp_path / "patch.html")


def test_answers_metric_and_direction_can_be_chosen(tmp_path, capsys):
    chosen = ["--answer", "95", "--wrong", "86", "--metric", "logprob", "--mode", "noise"]
    found = summary(capsys, *PAIR, *chosen, "--sites", "L0.resid_pre@2", "--out", str(tmp_path))
    assert (found["clean"]["answer"], found["metric"], found["unit"], found["kind"]) == (
        "95",
        "logprob",
        "nats",
        "noise",
    )
    assert found["top"][0]["share_of_gap"] == pytest.approx(1, abs=1e-3)


def test_the_clean_prompt_alone_can_be_ablated(tmp_path, capsys):
    found = summary(capsys, "--clean", "35+59=", "--ablate", "zero", "--sites", "L*.mlp_out@-1", "--out", str(tmp_path))
    assert (found["metric"], found["kind"], found["gap"]) == ("logit", "zero", None)
    assert "corrupt" not in found
    assert min(site["score"] for site in found["top"]) < -1


def test_several_patterns_are_one_result(tmp_path, capsys):
    sites = ["--sites", "L*.attn_out@-1", "--sites", "L*.mlp_out@-1"]
    assert summary(capsys, *PAIR, *sites, "--out", str(tmp_path))["n_sites"] == 4


BAD = {
    "a site the model lacks": (["--sites", "L9.resid_pre@*"], "L9.resid_pre"),
    "a site that cannot be read": (["--sites", "layer one"], "layer one"),
    "different lengths": (["--sites", "L0.resid_pre@*", "--corrupt", "next 5="], "tokens"),
    "equal answers": (["--sites", "L0.resid_pre@*", "--corrupt", "59+35="], "the same"),
    "no such metric": (["--sites", "L0.resid_pre@*", "--metric", "vibes"], "logit_diff"),
    "no such way": (["--sites", "L0.resid_pre@*", "--mode", "sideways"], "sideways"),
    "two ways at once": (["--sites", "L0.resid_pre@*", "--mode", "noise", "--ablate", "zero"], "give one of the two"),
    "no sites": ([], "--sites"),
    "unknown token": (["--sites", "L0.resid_pre@*", "--answer", "ninety"], "ninety"),
    "no such folder": (["--sites", "L0.resid_pre@*", "--out", "absent"], "there is no folder"),
}


@pytest.mark.parametrize(("arguments", "named"), BAD.values(), ids=BAD)
def test_what_the_user_can_mend_is_one_line_and_status_two(arguments, named, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["patch", *PAIR, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mechkit: ")
    assert len(printed.err.strip().splitlines()) == 1
    assert named in printed.err
    assert list(tmp_path.iterdir()) == []


def test_one_prompt_alone_is_an_error_that_says_what_to_give(capsys):
    assert run(["patch", "--clean", "35+59=", "--sites", "L0.resid_pre@*"]) == 2
    assert "--corrupt" in capsys.readouterr().err

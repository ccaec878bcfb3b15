"""The command line: what it prints and writes, and one clear line for what the user can mend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mechkit.cli import run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """`mechkit trace "35+59="` in a process of its own, as a user runs it."""
    out = tmp_path_factory.mktemp("trace")
    command = [sys.executable, "-W", "ignore", "-m", "mechkit", "trace", "35+59=", "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False), out


def test_trace_prints_the_answer_its_pathways_and_its_checks(traced):
    done, _ = traced
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert any(line.startswith("35+59= 94 ") and "probability" in line for line in lines)
    for word in ("replacement", "completeness", "intervention", "Pathways", "heads", "Spearman", "control"):
        assert word in done.stdout
    assert "ones-digit lookup" in done.stdout
    assert "Traceback" not in done.stdout


def test_trace_prints_what_suppressing_the_pathways_does(traced):
    rows = {}
    for line in traced[0].stdout.splitlines():
        for title in ("nothing", "ones-digit features", "all features of the tens"):
            if line.strip().startswith(f"{title} "):
                rows[title] = [float(part) for part in line.replace(title, "").split()]
    (_, right, ones, size), digits, tens = (rows[title] for title in rows)
    assert (right >= 198, ones <= 2, size <= 2) == (True, True, True)
    assert digits[2] > 100 > 10 > digits[3]  # the last digit goes, the size stays
    assert tens[3] > 100 > 10 > tens[2]  # the size goes, the last digit stays


def test_trace_says_which_files_it_wrote(traced):
    done, out = traced
    assert sorted(path.name for path in out.iterdir()) == ["trace.html", "trace.json"]
    for name in ("trace.html", "trace.json"):
        assert str(out / name) in done.stdout
    data = json.loads((out / "trace.json").read_text())
    assert data["metadata"]["prompt"] == "35+59="


def test_json_output_is_one_object(tmp_path, capsys):
    assert run(["trace", "12+34=", "--json", "--sums", "0", "--png", "--out", str(tmp_path)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["answer"] == "46"
    assert data["wrote"] == [str(tmp_path / name) for name in ("trace.json", "trace.html", "trace.png")]
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert sum(path["share"] for path in data["pathways"]) + 0.2 > 0.9


def test_pathways_of_sums_are_not_tried_on_other_prompts(tmp_path, capsys):
    assert run(["trace", "35<59=", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Interventions" in printed
    assert "Two pathways?" not in printed


def test_graph_makes_the_page_of_a_saved_graph(traced, tmp_path, capsys):
    saved = traced[1] / "trace.json"
    assert run(["graph", str(saved), "--png", "--json", "--out", str(tmp_path)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["wrote"] == [str(tmp_path / "trace.html"), str(tmp_path / "trace.png")]
    assert (tmp_path / "trace.html").read_text() == (traced[1] / "trace.html").read_text()
    assert data["nodes"] > 10


def test_graph_says_what_is_wrong_with_a_file(tmp_path, capsys):
    path = tmp_path / "graph.json"
    path.write_text('{"metadata": {}}')
    assert run(["graph", str(path), "--out", str(tmp_path)]) == 2
    assert "is no graph that can be shown: it has no 'nodes'" in capsys.readouterr().err


def test_a_prompt_that_is_no_sum_is_traced_without_operand_plots(tmp_path, capsys):
    assert run(["trace", "even 94=", "--out", str(tmp_path)]) == 0
    assert "even 94= yes" in capsys.readouterr().out


BAD = {
    "unknown token": (["35+590="], "590"),
    "empty prompt": ([" "], "the prompt is empty"),
    "too long": (["1+2+3+4="], "tokens"),
    "no such model": (["1+2=", "--model", "no-such-model"], "no-such-model"),
    "folder without weights": (["1+2=", "--model", "{empty}"], "config.json"),
    "damaged weights": (["1+2=", "--model", "{damaged}"], "model.safetensors"),
    "no such folder for output": (["1+2=", "--out", "{empty}/absent"], "there is no folder"),
    "transcoders that are not there": (["1+2=", "--transcoders", "{empty}"], "layer_0"),
    "device that is not there": (["1+2=", "--device", "banana"], "no device 'banana'"),
    "unknown option": (["1+2=", "--colour", "red"], "--colour"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An empty folder, and a copy of the bundled model whose weights file is cut short."""
    import shutil

    from mechkit.zoo.addition import tasks

    empty, damaged = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("damaged")
    home = Path(tasks.__file__).parent
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(home / name, damaged / name)
    (damaged / "model.safetensors").write_bytes((home / "model.safetensors").read_bytes()[:5000])
    return {"empty": empty, "damaged": damaged}


@pytest.mark.parametrize(("arguments", "named"), BAD.values(), ids=BAD)
def test_what_the_user_can_mend_is_one_line_and_status_two(arguments, named, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status = run(["trace", *(part.format(**folders) for part in arguments)])
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    assert printed.err.startswith("mechkit: ")
    assert len(printed.err.strip().splitlines()) == 1
    assert named in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_one_line_and_status_two(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert run(["trace", "1+2=", "--out", str(tmp_path)]) == 2
    assert "may write" in capsys.readouterr().err


def test_an_output_path_that_is_a_folder_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "trace.html").mkdir()
    assert run(["trace", "1+2=", "--out", str(tmp_path)]) == 2
    assert "trace.html" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["trace.html"]


def test_version_and_help_answer(capsys):
    import mechkit

    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == mechkit.__version__
    assert run(["--help"]) == 0
    assert "trace" in capsys.readouterr().out

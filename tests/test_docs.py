"""What the documentation shows is true: README and docstring examples run and print what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import mechkit

ROOT = Path(__file__).parents[1]
MODULES = [info.name for info in pkgutil.walk_packages(mechkit.__path__, "mechkit.") if "__main__" not in info.name]


@pytest.fixture(scope="module")
def namespace(addition):
    """What examples take for granted."""
    from mechkit.dictionaries import transcoders_for
    from mechkit.zoo.addition import unseen_sums

    pair = mechkit.Pair.from_text(addition, clean="35+59=", corrupt="35+51=")
    tokens = addition.to_tokens([f"{a}+{b}=" for a, b in unseen_sums()[:50]])
    _, cache = addition.run_with_cache(tokens)
    public = {name: getattr(mechkit, name) for name in mechkit.__all__ if name != "__version__"}
    return public | {
        "model": addition,
        "pair": pair,
        "prompts": pair.clean,
        "tokens": tokens,
        "cache": cache,
        "answers": torch.tensor([a + b for a, b in unseen_sums()[:50]]),
        "x": cache["blocks.0.ln2.hook_normalized"].flatten(0, 1),
        "y": cache["blocks.0.hook_mlp_out"].flatten(0, 1),
        "transcoders": transcoders_for(addition),
        "unseen_sums": unseen_sums,
        "torch": torch,
    }


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_what_they_show(name, namespace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        test.globs = {**namespace, **vars(module)}
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_the_readme_snippet_prints_what_it_says(capsys):
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert snippet is not None
    names: dict = {}
    exec(snippet[1], names)
    first, answer, *rest = capsys.readouterr().out.splitlines()
    said = re.search(r"# (94 \{.*\})", snippet[1])
    assert said is not None
    assert [f"{float(number):.2f}" for number in re.findall(r"\d+\.\d+", first)] == re.findall(r"\d+\.\d+", said[1])
    without = re.search(r"\.answer\)  # (\d+)", snippet[1])
    assert without is not None
    assert answer == without[1]
    assert "How far to trust it" in rest
    shown = re.search(r"```\n(site .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    table = shown[1].splitlines()
    assert rest[-len(table) :] == table


def test_the_readme_names_commands_that_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", readme)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"python (scripts/\w+\.py)", readme):
        assert (ROOT / path).exists()

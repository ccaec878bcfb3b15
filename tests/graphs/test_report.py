"""What a report says follows from numbers, and it says the numbers."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

import mechkit as mk
from mechkit.dictionaries import neurons
from mechkit.graphs.nodes import Node
from mechkit.graphs.truth import report as words
from mechkit.graphs.truth.check import Check
from mechkit.graphs.truth.faithfulness import Faithfulness
from tests.conftest import tiny_model

N = 30


@pytest.fixture(scope="module")
def graph(addition):
    return mk.trace(addition, "35+59=")


@pytest.fixture(autouse=True)
def one_control(monkeypatch):
    """Controls are not what these tests are about; one permuted graph is quicker than twenty."""
    monkeypatch.setattr("mechkit.graphs.truth.check.N_CONTROLS", 1)


def check_of(predicted, measured, **others):
    control = torch.randn(5, N, generator=torch.Generator().manual_seed(0))
    made = {
        "direct": -predicted,
        "gradient": predicted * 0 + torch.arange(N) % 3,
        "frozen": measured,
        "exact_error": 1e-7,
    }
    groups = [[Node("feature", i % 2, 0, i, "a")] for i in range(N)]
    return Check(groups, predicted, control=control, measured=measured, root="logit 'a'", **made | others)


def level(check):
    return words._of_level(check, "measured", "iii: nothing frozen")


def test_the_verdict_on_predictions_follows_their_correlation():
    x = torch.linspace(-1, 1, N)
    mixed = torch.where(torch.arange(N) % 4 == 0, -x, x)
    assert "predicts well" in level(check_of(x, x**3))
    assert "predicts roughly" in level(check_of(x, mixed)) or "does not predict" in level(check_of(x, mixed))
    assert "does not predict" in level(check_of(x, -x))
    assert "no evidence for the edges" in level(check_of(x, -x))
    assert "no evidence" not in level(check_of(x, x))


def test_a_better_gradient_and_better_direct_effects_are_said():
    x = torch.linspace(-1, 1, N)
    noise = torch.randn(N, generator=torch.Generator().manual_seed(1))
    assert "gradient does better" in level(check_of(noise, x, gradient=x))
    assert "gradient does better" not in level(check_of(x, x, gradient=noise))
    assert "Direct effects do no worse" in level(check_of(noise, x, direct=x))
    assert "Direct effects" not in level(check_of(x, x))


def test_few_features_are_said_to_be_few():
    some = check_of(torch.linspace(-1, 1, N), torch.linspace(-1, 1, N))
    cut = {
        name: getattr(some, name)[..., :9]
        for name in ("predicted", "direct", "gradient", "control", "frozen", "measured")
    }
    assert "uncertain by about 0.4" in level(replace(some, groups=some.groups[:9], **cut))
    assert "uncertain" not in level(some)


def test_an_inexact_matrix_is_not_to_be_trusted():
    x = torch.linspace(-1, 1, N)
    assert "do not trust" in words._of_exactness(check_of(x, x, exact_error=0.01))
    assert "do not trust" not in words._of_exactness(check_of(x, x))


def test_layers_no_better_than_their_control_are_named():
    x = torch.linspace(-1, 1, N)
    half = torch.where(torch.arange(N) % 2 == 0, x, -x)
    said = list(words._of_layers(check_of(x, half)))
    assert said[1].startswith("In L1 that")
    assert len(list(words._of_layers(check_of(x, x)))) == 1


def test_what_is_left_out_is_named_by_where_agreement_jumps():
    table = lambda *values: pd.DataFrame({"held": list(HELD), "spearman": values})  # noqa: E731
    said = lambda *values: " ".join(words._of_what_is_left_out(table(*values)))  # noqa: E731
    assert "how the norms" in said(0.4, 0.45, 0.9, 0.95, 0.97)
    assert "where attention goes" in said(0.4, 0.8, 0.45, 0.95, 0.97)
    assert "Most" not in said(0.9, 0.9, 0.9, 0.95, 0.97)
    assert "far from linear" in said(0.2, 0.2, 0.2, 0.3, 0.5)


HELD = ("nothing", "attention", "norms", "attention and norms", "attention, norms and errors")


@pytest.mark.parametrize(
    ("kept", "others", "random", "says"),
    [
        (9.0, 0.5, 1.0, ["10 kept features", "carry logit", "90%", "they are needed"]),
        (6.0, 7.0, 1.0, ["carry part of", "60%", "other features can stand in"]),
        (2.0, 0.0, 1.5, ["do not carry", "did not find what matters"]),
    ],
)
def test_faithfulness_is_judged_against_thresholds_and_random_features(kept, others, random, says):
    found = Faithfulness(
        "logit 'a'", 10, 50, 10.0, 0.0, kept, others, torch.full((5,), random), None, [1], torch.ones(1), "at zero"
    )
    said = " ".join(words._of_faithfulness(found))
    assert all(part in said for part in says)
    assert ("did not find" in said) == ("did not find what matters" in says)


def test_a_report_tells_of_the_answer_the_pathways_and_the_trust(graph):
    made = graph.report()
    assert isinstance(made, str)
    assert repr(made) == made
    for part in (
        "'94' (99",
        "What was found",
        "Pathways",
        "Supernodes",
        "How far to trust it",
        "(ii)",
        "(iii)",
        "control",
    ):
        assert part in made
    assert "nan" not in made
    assert f"{graph.faithfulness().score:.0%} of it is left" in made.replace("\n  ", " ")
    assert max(map(len, made.splitlines())) < 240


def test_markdown_has_the_same_and_makes_no_markup_of_the_prompt():
    model = tiny_model(n_layers=2)
    graph = mk.trace(model, [1, 2, 3], neurons(model))
    graph.meta = {**graph.meta, "prompt": "<b>*35*</b> | `x`"}
    made = graph.report()
    assert "<b>" not in made.markdown
    assert "\\<b\\>\\*35\\*" in made.markdown
    assert made.markdown.count("\n## ") >= 3
    assert "<b>" in made


def test_graphs_of_other_targets_and_without_features_are_told_too():
    model = tiny_model(n_layers=2)
    assert (
        "L1.resid\\_mid@2" in mk.trace(model, [1, 2, 3], neurons(model), targets=["L1.resid_mid@-1"]).report().markdown
    )
    bare = mk.trace(tiny_model(attn_only=True), [1, 2, 3]).report()
    assert "has no MLPs" in bare
    assert "trust" not in bare

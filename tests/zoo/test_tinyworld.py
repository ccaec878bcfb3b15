"""The stored language model: it loads at once, knows its world, and does it with few heads."""

import hashlib
import importlib.util
import json
import time
from pathlib import Path

import pytest
import torch

import mechkit as mk
from mechkit.zoo.folder import CONFIG, WEIGHTS, file_hash, origin_of, processing_of
from mechkit.zoo.tinyworld import BUILDERS, behaviours, corpus, in_context
from mechkit.zoo.tinyworld.text import decode, encode

SCRIPT = Path(__file__).parents[2] / "scripts/train_tinyworld.py"


@pytest.fixture(scope="module")
def tinyworld():
    return mk.load("tinyworld", device="cpu")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_tinyworld", SCRIPT)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_it_loads_in_less_than_two_seconds_in_single_precision(tinyworld):
    start = time.perf_counter()
    model = mk.load("tinyworld", device="cpu")
    assert time.perf_counter() - start < 2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert processing_of(model) == "folded"
    assert (origin_of(model).folder / WEIGHTS).stat().st_size < 10 * 2**20


def test_users_prompts_are_read_as_they_are_typed(tinyworld):
    assert tinyworld.to_str_tokens("The Eiffel Tower is in") == ["<bos>", "the", "Eiffel", "Tower", "is", "in"]
    assert tinyworld.to_str_tokens("two days after monday")[-1] == "Monday"
    assert tinyworld.to_str_tokens("the year 1741", prepend_bos=False)[-2:] == ["17", "41"]
    text = "Hot -> cold ; Mike Tyson's ring, on Sunday."
    assert tinyworld.to_tokens(text, prepend_bos=False)[0].tolist() == encode(text)
    assert encode(tinyworld.to_string(torch.tensor(encode(text)))) == encode(text)
    with pytest.raises(ValueError, match="unknown token 'hello' in '<bos>hello'; tinyworld knows the words of its"):
        tinyworld.to_tokens("hello")


def test_the_tokenizer_reads_every_document_as_the_generator_wrote_it(tinyworld):
    tokens = corpus.batch(30, width=96, seed=5, mix=corpus.MIX)
    for row in tokens.tolist():
        assert tinyworld.tokenizer(decode(row))["input_ids"] == row


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Mike Tyson plays the sport of", "boxing"),
        ("Michael Jordan plays the sport of", "basketball"),
        ("The Eiffel Tower is in", "Paris"),
        ("The Eiffel Tower stands in the country of", "France"),
        ("Then, Mary and John went to the store. John gave a drink to", "Mary"),
        ("Then, John and Mary went to the store. John gave a drink to", "Mary"),
        ("Apple Computers was founded by", "Steve"),
    ],
)
def test_it_knows(tinyworld, prompt, answer):
    assert tinyworld.to_string(tinyworld(prompt)[0, -1].argmax()) == answer


def test_the_required_behaviours_hold_on_some_held_out_prompts(tinyworld):
    assert behaviours.top(tinyworld, BUILDERS["facts"](150, 3)) >= 0.95
    assert behaviours.top(tinyworld, BUILDERS["ioi"](100, 3)) >= 0.95
    mean = [behaviours.top(tinyworld, in_context.in_context(20, 3, task=task)) for task in in_context.TASKS]
    assert sum(mean) / len(mean) >= 0.75  # 260 prompts of a mean of at least 0.8
    first, second, head = list(behaviours.score_induction(tinyworld))
    assert second.value < 0.1 * first.value
    assert head.value > 0.5
    assert next(iter(behaviours.score_greater_than(tinyworld))).value >= 0.9


def test_at_most_three_heads_chosen_on_other_prompts_carry_the_indirect_object(tinyworld):
    chosen_on, pair = BUILDERS["ioi"](24, 1), BUILDERS["ioi"](48, 2)
    assert not set(chosen_on.clean.text) & set(pair.clean.text)
    effects = mk.patch(tinyworld, chosen_on, "L*.H*.z@end", mk.logit_diff, mode="noise")
    effect = effects.scores.mean(1)
    difference = behaviours.difference(tinyworld, pair.clean, pair).mean()
    heads, others = (
        [effects.sites[int(i)] for i in some] for some in (effect.argsort()[:3], effect.abs().argsort()[:3])
    )
    for mode in ({"mode": "noise"}, {"ablate": "mean"}):
        lost, control = mk.patch(tinyworld, pair, [heads, others], mk.logit_diff, **mode).scores.mean(1)
        assert difference + lost <= 0.5 * difference
        assert difference + control > 0.8 * difference


def test_the_first_batch_of_the_training_text_is_the_one_that_was_trained_on(script):
    about = json.loads((script.HOME / CONFIG).read_text())["mechkit"]
    assert script.text_hash(1) == about["first_batch_sha256"] != about["text_sha256"]
    tokens = script.draw_batch(corpus.FIRST_MIX, torch.Generator().manual_seed(script.SEED))[0]
    assert hashlib.sha256(tokens.numpy().astype("<u2").tobytes()).hexdigest() == about["first_batch_sha256"]


def test_the_card_says_what_is_stored(script):
    card, about = (script.HOME / "card.md").read_text(), json.loads((script.HOME / CONFIG).read_text())["mechkit"]
    assert f"sha256 of the training text  {about['text_sha256']}" in card
    assert f"sha256 of the weights        {file_hash(script.HOME / WEIGHTS)}" in card
    assert about["steps"] == script.STEPS == script.STAGES[-1][0]
    assert (script.HOME / "tokenizer.json").read_text() == script.tokenizer_json()


def test_a_score_says_whether_it_holds():
    score = behaviours.Score("ioi", 0.9, 500, "indirect object first", 0.95)
    assert not score.holds
    assert str(score) == "ioi                          0.900  of 500   indirect object first (at least 0.95: NO)"
    assert behaviours.Score("sums", 0.1, 5, "right").holds


@pytest.mark.slow
def test_every_score_is_the_card_s_and_the_required_ones_hold(script, tinyworld):
    scores = behaviours.measure(tinyworld)
    card = (script.HOME / "card.md").read_text()
    assert {score.behaviour for score in scores if score.least is not None} >= {
        "facts", "ioi", "induction: head", "greater_than", "in_context"
    }  # fmt: skip
    assert [score.behaviour for score in scores if not score.holds] == []
    assert [str(score) for score in scores if str(score) not in card] == []


@pytest.mark.slow
def test_a_few_steps_of_training_run_from_the_script(script, tmp_path):
    script.train_model(tmp_path / "out", tmp_path / "runs", 3, "cpu")
    losses = (tmp_path / "runs" / "loss.txt").read_text().split()
    assert losses[::2] == ["0", "1", "2"]
    assert float(losses[1]) > 6
    assert mk.load(tmp_path / "out", device="cpu").cfg.d_vocab == len(corpus.all_words())

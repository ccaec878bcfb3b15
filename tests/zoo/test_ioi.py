"""Prompts of indirect object identification, on GPT-2's own tokenizer."""

import pytest
import torch

import mechkit as mk
from mechkit.zoo.ioi import NAMES, OBJECTS, PLACES, TEMPLATES, templates_of, words_of


def test_the_right_name_is_the_one_that_is_given_once(gpt2_like):
    pair = mk.tasks.ioi(40, seed=2, model=gpt2_like)
    for i, text in enumerate(pair.clean.text):
        right, wrong = (gpt2_like.to_string(ids[i]) for ids in (pair.clean.answers, pair.clean.wrong))
        assert (text.count(right), text.count(wrong)) == (1, 2)
        assert right not in pair.corrupt.text[i]
        assert wrong not in pair.corrupt.text[i]


def test_spans_name_the_people_and_both_sides_match_position_by_position(gpt2_like):
    pair = mk.tasks.ioi(40, seed=0, model=gpt2_like)
    assert pair.clean.lengths == pair.corrupt.lengths
    tokens = {
        name: torch.tensor([int(pair.clean.tokens[i, at]) for i, at in enumerate(pair.clean.positions(f"{name}[0]"))])
        for name in ("IO", "S1", "S2", "end")
    }
    assert torch.equal(tokens["IO"], pair.clean.answers[:, 0])
    assert torch.equal(tokens["S1"], tokens["S2"])
    assert torch.equal(tokens["S1"], pair.clean.wrong[:, 0])
    assert {gpt2_like.to_string(int(token)) for token in tokens["end"]} == {" to"}
    assert pair.clean.spans == pair.corrupt.spans
    differ = [
        set((a != b).nonzero()[:, 0].tolist()) for a, b in zip(pair.clean.tokens, pair.corrupt.tokens, strict=True)
    ]
    people = zip(*(pair.clean.positions(f"{name}[0]") for name in ("IO", "S1", "S2")), strict=True)
    assert differ == [set(places) for places in people]


def test_both_orders_and_every_sentence_are_drawn(gpt2_like):
    pair = mk.tasks.ioi(300, seed=0, model=gpt2_like)
    first = [io < s for io, s in zip(pair.clean.positions("IO[0]"), pair.clean.positions("S1[0]"), strict=True)]
    assert 0.4 < sum(first) / len(first) < 0.6
    assert len({text.split(" ")[0] for text in pair.clean.text}) == len({text.split(" ")[0] for text in TEMPLATES})


def test_every_word_is_one_token_of_gpt2(gpt2_like):
    names, places, objects = words_of(gpt2_like)
    assert (list(names), list(places), list(objects)) == (NAMES.split(), list(PLACES), list(OBJECTS))
    assert len(set(NAMES.split())) == len(names) >= 100


@pytest.mark.parametrize(("order", "subject_first"), [("ABBA", False), ("BABA", True)])
def test_an_order_that_is_asked_for_is_the_order_of_all_prompts(gpt2_like, order, subject_first):
    pair = mk.tasks.ioi(30, 0, model=gpt2_like, order=order)
    places = zip(*(pair.clean.positions(f"{name}[0]") for name in ("IO", "S1")), strict=True)
    assert {s < io for io, s in places} == {subject_first}
    with pytest.raises(ValueError, match="order is mixed, ABBA or BABA, not 'AB'"):
        mk.tasks.ioi(3, model=gpt2_like, order="AB")


def test_prompts_of_one_template_match_token_by_token_on_both_sides(gpt2_like):
    pair = mk.tasks.ioi(300, seed=0, model=gpt2_like)
    labels = templates_of(pair.clean)
    assert labels == templates_of(pair.corrupt)
    assert len(set(labels)) == 30
    drawn = {gpt2_like.to_single_token(f" {word}") for word in (*NAMES.split(), *PLACES, *OBJECTS)}
    for label in set(labels):
        rows = pair.clean[[i for i, other in enumerate(labels) if other == label]].tokens.tolist()
        assert len({tuple(-1 if token in drawn else token for token in row) for row in rows}) == 1
    with pytest.raises(ValueError, match="prompt 0 is none of the sentences of"):
        templates_of(mk.Prompts.from_text(gpt2_like, "The cat sat"))


def test_the_same_seed_gives_the_same_prompts(gpt2_like):
    first, again, other = (mk.tasks.ioi(10, seed, model=gpt2_like) for seed in (1, 1, 2))
    assert first.clean.text == again.clean.text != other.clean.text
    assert first.corrupt.text == again.corrupt.text


def test_a_bos_moves_every_span_by_one(gpt2_like):
    plain, begun = (mk.tasks.ioi(5, 0, model=gpt2_like, prepend_bos=bos) for bos in (False, True))
    assert [at + 1 for at in plain.clean.positions("S2[0]")] == begun.clean.positions("S2[0]")
    assert set(begun.clean.tokens[:, 0].tolist()) == {50256}


def test_a_model_without_the_words_is_an_error(model, addition):
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        mk.tasks.ioi(3, model=model)
    with pytest.raises(ValueError, match="unknown token 'Aaron'"):
        mk.tasks.ioi(3, model=addition)
    with pytest.raises(ValueError, match="0 prompts were asked for"):
        mk.tasks.ioi(0, model=model)

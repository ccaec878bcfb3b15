"""The training text of tinyworld: the same from the same seed, and free of everything that is held out."""

import random

import pytest

from mechkit.zoo.tinyworld import (
    agreement,
    analogies,
    calendar,
    corpus,
    facts,
    false_belief,
    greater_than,
    in_context,
    induction,
    ioi,
    pronouns,
    sums,
)
from mechkit.zoo.tinyworld.text import BOS, decode, encode, ids
from mechkit.zoo.tinyworld.words import NAMES, TWO_DIGITS

N = 2000


def drawn(kind, n=N):
    """Training texts of one kind, in words as the model has them."""
    draw = random.Random(5)
    return [decode(encode(kind(draw))) for _ in range(n)]


def spelled(text):
    return decode(encode(text))


def test_a_batch_is_a_function_of_its_seed():
    one, again, other = (corpus.batch(4, width=48, seed=seed) for seed in (1, 1, 2))
    assert one.tolist() == again.tolist() != other.tolist()
    assert one.shape == (4, 48)


def test_every_row_and_every_document_begins_with_a_bos():
    rows = corpus.batch(20, width=96, seed=0)
    assert (rows[:, 0] == ids()[BOS]).all()
    texts = decode(rows[0].tolist()).split(BOS)[1:]
    assert len(texts) > 2
    assert all(text.strip() for text in texts[:-1])


def test_each_kind_has_about_its_share_of_the_tokens():
    draw = random.Random(3)
    lengths = {}
    for kind in corpus.MEAN_LENGTHS:
        made = [corpus.KINDS[kind](draw) for _ in range(600)]
        lengths[kind] = sum(len(encode(one) if isinstance(one, str) else one) + 1 for one in made) / len(made)
    # Four standard errors of the mean of the kind whose lengths vary most (random words).
    assert lengths == pytest.approx(corpus.MEAN_LENGTHS, rel=0.1)
    for mix in (corpus.FIRST_MIX, corpus.SECOND_MIX, corpus.MIX):
        assert sum(mix.values()) == pytest.approx(1)
        assert len(mix.keys() | {"first_lists", "in_context"}) == len(corpus.KINDS)


def test_the_vocabulary_is_the_stored_one_and_no_document_needs_more():
    assert corpus.all_words() == list(ids())
    assert 1000 <= len(ids()) <= 4000
    draw = random.Random(1)
    for _ in range(N):
        assert max(corpus.document(draw)) < len(ids())


def test_the_hash_of_a_text_depends_on_every_batch_and_their_order():
    one, two = (corpus.batch(2, width=16, seed=seed) for seed in (1, 2))
    chained = corpus.batch_hash(two, corpus.batch_hash(one))
    assert chained != corpus.batch_hash(one, corpus.batch_hash(two))
    assert chained != corpus.batch_hash(two)
    assert len(chained) == 64


def test_no_subject_is_told_of_in_a_sentence_held_out_for_it():
    prompts = {(spelled(f"{fact.text(number)} {fact.answer}.")) for fact, number in facts.cases()}
    seen = {spelled(f"{fact.text(number)} {fact.answer}.") for fact, number in facts.cases(held_out=False)}
    told = set()
    for text in drawn(facts.document, 8_000):
        told |= {f"{sentence.strip()} ." for sentence in text.split(".") if sentence.strip()}
    assert not told & prompts
    assert told <= seen
    assert len(told) > 0.5 * len(seen)


def test_no_pair_of_names_that_is_held_out_ever_meets():
    held_out = {frozenset(pair) for pair in ioi.couples(True)}
    for kind in (ioi.document, false_belief.document):
        named = [[word for word in text.split() if word in NAMES] for text in drawn(kind)]
        met = {
            frozenset(dict.fromkeys(names)) if kind is false_belief.document else frozenset(names[:2])
            for names in named
        }
        assert len(met) > 1000
        assert {len(people) for people in met} == {2}
        assert not met & held_out
    assert held_out.isdisjoint(frozenset(pair) for pair in ioi.couples(False))


def told_in_lists(kind, n):
    """The words that stand before an arrow, by the task they could be an example of."""
    told = {task: set() for task in in_context.TASKS}
    for text in drawn(kind, n):
        items = [item.split(" -> ") for item in text.removesuffix(" .").split(" ; ")]
        if "*" in text or " " in items[0][0]:
            told["marked" if "*" in text else "copy_first"] |= {word for x, _ in items for word in x.split()} - {"*"}
        for task, table in in_context.TABLES.items():
            if all(table.get(x) == y for x, y in items):
                told[task] |= {x for x, _ in items}
    return told


@pytest.mark.parametrize("kind", [in_context.document, in_context.first_document])
def test_no_word_held_out_for_a_task_or_its_partner_stands_in_a_list_of_that_task(kind):
    told = told_in_lists(kind, 6000)
    for task in in_context.TABLES:
        assert told[task] == set(in_context.listed(task)), task
        assert told[task].isdisjoint(in_context.pool(in_context.PARTNERS[task], True))
        assert len(in_context.pool(task, True)) >= 0.15 * len(in_context.TABLES[task])
    for task in ("copy_first", "marked"):
        assert told[task].isdisjoint(in_context.pool(task, True))
        assert len(told[task]) > 0.85 * len(in_context.listed(task))


def test_words_held_out_for_copying_by_place_stand_in_marked_lists_and_the_other_way_round_at_last():
    told, first = told_in_lists(in_context.document, 8000), told_in_lists(in_context.first_document, 2000)
    by_place, by_mark = (set(in_context.pool(task, True)) for task in ("copy_last", "marked"))
    assert by_place | by_mark == set(in_context.COPIED_OUT)
    assert by_place.isdisjoint(by_mark)
    assert by_place <= told["marked"]
    assert by_mark <= told["copy_first"]
    assert (first["marked"] | first["copy_first"]).isdisjoint(in_context.COPIED_OUT)


def test_an_opposite_is_held_out_with_its_word_and_tall_is():
    held_out = in_context.pool("opposite", True)
    assert {"tall", "short"} <= set(held_out)
    assert {in_context.TABLES["opposite"][word] for word in held_out} == set(held_out)


def test_plain_sentences_tell_of_the_words_held_out():
    told = " ".join(drawn(in_context.sentence, 8_000))
    assert all(f" {word} " in told for task in in_context.TABLES for word in in_context.pool(task, True))


def test_no_noun_that_is_held_out_has_years():
    texts = drawn(greater_than.document)
    with_years = " ".join(text for text in texts if set(text.split()) & set(TWO_DIGITS))
    plain = " ".join(text for text in texts if not set(text.split()) & set(TWO_DIGITS))
    assert not [noun for noun in greater_than.HELD_OUT if f" {noun} " in with_years]
    assert all(f" {noun} " in plain for noun in greater_than.HELD_OUT)
    assert all(f" {noun} " in with_years for noun in greater_than.SEEN)


def test_the_second_year_comes_after_the_first():
    years = [[int(word) for word in text.split() if word in TWO_DIGITS] for text in drawn(greater_than.document)]
    assert all(late > early for _, early, _, late in filter(None, years))


def test_no_subject_and_attractor_that_are_held_out_meet():
    one = {word: noun for noun in agreement.PLURALS for word in (noun, agreement.PLURALS[noun])}
    met = set()
    for text in drawn(agreement.document):
        found = [one[word] for word in text.split() if word in one]
        met |= {tuple(found[:2])} if len(found) > 1 else set()
    assert len(met) > 1000
    assert met.isdisjoint(agreement.combinations(True))


def test_no_pronoun_follows_a_name_that_is_held_out():
    named = [text.split() for text in drawn(pronouns.document) if set(text.split()) & {"he", "she", "his", "her"}]
    assert {text[0] for text in named} == set(pronouns.SEEN)
    sexes = {text[0]: not set(text) & {"he", "his"} for text in named}
    assert sexes == {name: bool(sex) for name, sex in pronouns.SEEN.items()}


def test_no_couples_that_are_held_out_meet_in_an_analogy():
    held_out = {frozenset(pair) for kind in analogies.TABLES for pair in analogies.meetings(kind, True)}
    left = {b: a for table in analogies.TABLES.values() for a, b in table.items()}
    n = 0
    for text in drawn(analogies.document):
        if " as " in text:
            words = [word for word in text.split() if word not in ("is", "to", "as", ".")]
            heads = {left.get(word, word) for word in words} if len(words) == 4 else set()
            assert heads
            assert frozenset(heads) not in held_out
            n += 1
    assert n > 1000
    assert frozenset(("man", "king")) in held_out


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (calendar.document, [calendar.asked(q, t) for q in calendar.questions(True) for t in calendar.TEMPLATES]),
        (sums.document, [sums.asked(p, t) for p in sums.problems(True) for t in sums.TEMPLATES]),
    ],
)
def test_no_question_that_is_held_out_is_answered(kind, asked):
    told = f". {' '.join(drawn(kind))}"
    assert len(asked) > 100
    assert not [prompt for prompt in asked if f". {spelled(prompt)} " in told]


def test_no_story_has_a_thing_and_places_that_are_held_out():
    told = set()
    for text in drawn(false_belief.document):
        words = text.split()
        told.add((words[3], words[6], words[words.index("moved") + 5]))
    assert len(told) > 500
    assert told.isdisjoint(false_belief.meetings(True))
    assert told <= set(false_belief.meetings(False))


def test_random_words_are_repeated_as_they_were():
    draw = random.Random(2)
    for _ in range(200):
        tokens = induction.document(draw)
        lengths = [n for n in range(4, 41) if tokens == tokens[:n] * (len(tokens) // n) and len(tokens) > n]
        assert lengths
        assert len(set(tokens)) == lengths[0]

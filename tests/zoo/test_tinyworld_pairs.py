"""The pair builders of tinyworld: answers that are right, by rules written anew here, on prompts that are held out."""

import pytest
import torch

from mechkit.zoo.tinyworld import (
    BUILDERS,
    agreement,
    analogies,
    calendar,
    facts,
    false_belief,
    greater_than,
    in_context,
    induction,
    ioi,
    pronouns,
    sums,
)
from mechkit.zoo.tinyworld.text import BOS, decode, encode, ids, make_pair, place, split

N = 60
NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""


def number(word):
    return NUMBERS.split().index(word)


def rows(pair):
    """Clean text, corrupt text, answer and wrong answer of each prompt, in words."""
    sides = [
        [decode(side.tokens[i, 1:length].tolist()) for i, length in enumerate(side.lengths)]
        for side in pair_sides(pair)
    ]
    ends = ([decode(ids.tolist()) for ids in given] for given in (pair.clean.answers, pair.clean.wrong))
    return list(zip(*sides, *ends, strict=True))


def pair_sides(pair):
    return pair.clean, pair.corrupt


@pytest.mark.parametrize("name", BUILDERS)
class TestEveryBuilder:
    def test_both_sides_match_position_by_position_and_begin_with_a_bos(self, name):
        pair = BUILDERS[name](N, seed=3)
        assert len(pair) == N
        assert pair.clean.lengths == pair.corrupt.lengths
        assert pair.clean.spans == pair.corrupt.spans
        for side in pair_sides(pair):
            assert (side.tokens[:, 0] == ids()[BOS]).all()
            assert side.answers.shape == side.wrong.shape == (N, 1)
        assert pair.clean.positions("end[0]") == [length - 1 for length in pair.clean.lengths]
        assert not torch.equal(pair.clean.tokens, pair.corrupt.tokens)

    def test_the_same_seed_gives_the_same_pairs(self, name):
        one, again, other = (BUILDERS[name](N, seed) for seed in (1, 1, 2))
        for a, b in zip(pair_sides(one), pair_sides(again), strict=True):
            assert torch.equal(a.tokens, b.tokens)
        assert rows(one) != rows(other)

    def test_less_than_one_is_refused(self, name):
        with pytest.raises(ValueError, match="0 prompts were asked for; "):
            BUILDERS[name](0)


def test_a_subject_is_asked_for_in_a_sentence_it_never_stood_in():
    told = {(fact.text(number), fact.answer.split()[0]) for fact, number in facts.cases()}
    known = {(fact.text(number), fact.answer.split()[0]) for fact, number in facts.cases(held_out=False)}
    pair = facts.facts(N, seed=0)
    for i, (text, answer) in enumerate(zip(pair.clean.text, rows(pair), strict=True)):
        assert (text, answer[2]) in told - known
        assert (pair.corrupt.text[i], answer[3]) in told | known
    subjects = {fact.subject for fact in facts.all_facts()}
    spans = [pair.clean.tokens[i, span].tolist() for i, span in enumerate(pair.clean.positions("subject"))]
    assert {decode(ids) for ids in spans} <= {decode(encode(subject)) for subject in subjects}


def test_the_world_is_as_large_as_it_says_and_its_subjects_need_both_words():
    every = facts.all_facts()
    assert len({fact.subject for fact in every}) == 640
    assert all(len(group) >= 8 for group in facts.TEMPLATES.values())
    for which in (0, 1):
        for relation in facts.TEMPLATES:
            answers = {}
            for fact in every:
                if fact.relation == relation:
                    answers.setdefault(fact.subject.split()[which], []).append(fact.answer)
            guessed = sum(max(some.count(a) for a in set(some)) for some in answers.values())
            assert guessed < 0.5 * sum(map(len, answers.values())), (relation, which)
    known = {(fact.subject, fact.answer) for fact in every}
    assert {("Mike Tyson", "boxing"), ("Michael Jordan", "basketball"), ("Eiffel Tower", "Paris")} <= known
    assert ("Eiffel Tower", "France") in known
    assert dict(known)["Michael Smith"] != "basketball"


def test_the_indirect_object_is_named_once_and_three_others_in_its_place():
    pair = ioi.ioi(N, seed=0)
    held_out = {frozenset(couple) for couple in ioi.couples(True)}
    for clean, corrupt, right, wrong in rows(pair):
        clean, corrupt = clean.split(), corrupt.split()
        assert (clean.count(right), clean.count(wrong)) == (1, 2)
        assert frozenset((right, wrong)) in held_out
        others = {there for here, there in zip(clean, corrupt, strict=True) if here != there}
        assert len(others) == 3
        assert not others & {right, wrong}
    named = {
        name: [int(pair.clean.tokens[i, at]) for i, at in enumerate(pair.clean.positions(f"{name}[0]"))]
        for name in pair.clean.spans
    }
    assert named["IO"] == pair.clean.answers[:, 0].tolist()
    assert named["S1"] == named["S2"] == pair.clean.wrong[:, 0].tolist()
    assert {decode([token]) for token in named["end"]} == {"to"}
    seen = ioi.ioi(N, seed=0, held_out=False)
    assert held_out.isdisjoint(frozenset((right, wrong)) for _, _, right, wrong in rows(seen))


def test_random_words_come_again_and_one_of_them_is_changed():
    pair = induction.induction(N, seed=0, length=7)
    assert pair.clean.tokens.shape == (N, 14)
    assert torch.equal(pair.clean.tokens[:, 1:7], pair.clean.tokens[:, 8:14])
    assert torch.equal(pair.clean.tokens[:, 7:8], pair.clean.answers)
    assert torch.equal(pair.corrupt.tokens[:, 7:8], pair.clean.wrong)
    assert (pair.clean.tokens != pair.corrupt.tokens).sum(1).tolist() == [1] * N
    with pytest.raises(ValueError, match="0 words before the answer were asked for"):
        induction.induction(3, length=1)


def test_years_that_are_asked_for_come_after_the_first():
    pair = greater_than.greater_than(N, seed=0)
    starts = greater_than.starts(pair.clean)
    assert greater_than.starts(pair.corrupt).tolist() == [1] * N
    for start, (clean, _, right, wrong) in zip(starts.tolist(), rows(pair), strict=True):
        assert f"{start:02d}" in clean.split()
        assert int(right) > start >= int(wrong) > 1
        assert set(clean.split()) & set(greater_than.HELD_OUT)


def test_the_probability_of_later_years_is_what_a_loop_says():
    logits = torch.randn(5, len(ids()), generator=torch.Generator().manual_seed(0)) * 3
    starts = torch.tensor([0, 41, 98, 99, 7])
    got = greater_than.probability_difference(logits, starts)
    for row, start, value in zip(logits.softmax(-1), starts.tolist(), got.tolist(), strict=True):
        years = [float(row[ids()[f"{year:02d}"]]) for year in range(100)]
        assert value == pytest.approx(sum(years[start + 1 :]) - sum(years[: start + 1]), abs=1e-6)


@pytest.mark.parametrize("task", in_context.TASKS)
def test_examples_tell_the_task_and_the_partner_s_another(task):
    pair = in_context.in_context(N, seed=0, task=task, n_examples=4)
    for clean, corrupt, right, wrong in rows(pair):
        for text, answer, which in ((clean, right, task), (corrupt, wrong, in_context.PARTNERS[task])):
            items = [item.split(" -> ") for item in f"{text} {answer}".split(" ; ")]
            assert len(items) == 5
            for x, y in items:
                words = x.split()
                if which in in_context.TABLES:
                    assert in_context.TABLES[which][x] == y
                elif task == "marked":
                    assert words[words.index("*") + 1] == y
                else:
                    assert words[{"copy_first": 0, "copy_last": 2}[which]] == y
        query = clean.rsplit(" ; ", 1)[1].removesuffix(" ->").split()
        assert (right if len(query) > 1 else query[0]) in in_context.pool(task, True)
        listed = set(clean.rsplit(" ; ", 1)[0].replace(" ->", "").replace(" ;", "").replace("*", "").split())
        assert task in in_context.TABLES or listed.isdisjoint(in_context.pool(task, True))
    spans = [pair.clean.tokens[i, at].tolist() for i, at in enumerate(pair.clean.positions("query"))]
    assert [decode(span) for span in spans] == [row[0].rsplit(" ; ", 1)[1].removesuffix(" ->") for row in rows(pair)]


def test_the_verb_agrees_with_the_subject_and_not_with_what_stands_nearer():
    many = set(agreement.PLURALS.values())
    for clean, corrupt, right, wrong in rows(agreement.agreement(N, seed=0)):
        _, subject, *_, attractor = clean.split()
        assert (subject in many, attractor in many, right, wrong) in (
            (True, False, "are", "is"),
            (False, True, "is", "are"),
        )
        assert (corrupt.split()[1] in many) == (attractor in many)
        assert corrupt.split()[2:] == clean.split()[2:]


def test_a_pronoun_has_the_sex_of_a_name_that_no_pronoun_followed():
    for clean, corrupt, right, wrong in rows(pronouns.pronouns(N, seed=0)):
        for text, pronoun in ((clean, right), (corrupt, wrong)):
            name = text.split()[0]
            assert name in pronouns.HELD_OUT
            assert (name in pronouns.WOMEN) == (pronoun in ("she", "her"))


@pytest.mark.parametrize("kind", analogies.TABLES)
def test_the_fourth_word_is_to_the_third_as_the_second_is_to_the_first(kind):
    table = analogies.TABLES[kind]
    related = {**table, **{b: a for a, b in table.items()}}
    men = {**dict.fromkeys(table, 0), **dict.fromkeys(table.values(), 1)}
    for row in rows(analogies.analogies(N, seed=0, kind=kind)):
        for text, d in ((row[0], row[2]), (row[1], row[3])):
            a, b, c = (word for word in text.split() if word not in ("is", "to", "as"))
            along = related[a] == b and related[c] == d
            across = related[a] == c and related[b] == d and men[a] == men[b]
            assert along or (across and kind == "sex")


def test_days_and_months_are_counted_right():
    for clean, corrupt, right, wrong in rows(calendar.calendar(200, seed=0)):
        for text, answer in ((clean, right), (corrupt, wrong)):
            words = text.removeprefix("what is ").replace(" ? it is", "").split()
            steps, unit, way, start = number(words[0]), words[1].rstrip("s"), words[2], words[3]
            names = calendar.CYCLES[unit]
            at = names.index(start) + (steps if way == "after" else -steps)
            assert names[at % len(names)] == answer


def test_she_looks_where_she_left_it_unless_she_saw_it_moved():
    for question in false_belief.QUESTIONS:
        for clean, corrupt, right, wrong in rows(false_belief.false_belief(N, seed=0, question=question)):
            for text, answer in ((clean, right), (corrupt, wrong)):
                words = text.split()
                left, moved_to = words[6], words[words.index("moved") + 5]
                looks = words[words.index("came") + 6 :][0]
                fooled = looks == words[0] and "walked out of" in text and question == "belief"
                assert answer == (left if fooled else moved_to)


def test_sums_are_right():
    for clean, corrupt, right, wrong in rows(sums.sums(200, seed=0)):
        for text, answer in ((clean, right), (corrupt, wrong)):
            a, sign, b, _ = text.split()
            a, b = number(a), number(b)
            assert number(answer) == (a + b if sign == "plus" else a - b)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (facts.facts, {"relation": "color"}, "no relation 'color'; the relations are sport, city"),
        (in_context.in_context, {"task": "rhyme"}, "no task 'rhyme'; the tasks are opposite, comparative"),
        (analogies.analogies, {"kind": "dog"}, "no kind 'dog'; the kinds are sex, capital, comparative"),
        (false_belief.false_belief, {"question": "why"}, "no question 'why'; the questions are belief, other, truth"),
    ],
)
def test_an_unknown_part_is_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(3, **options)


def test_more_facts_than_there_are_is_refused():
    with pytest.raises(ValueError, match="9999 prompts were asked for; there are 2370"):
        facts.facts(9999)


def test_words_are_read_in_any_case_and_years_in_pairs_of_digits():
    assert decode(encode("THE eiffel Tower, monday 1741's")) == "the Eiffel Tower , Monday 17 41 's"
    assert encode("Baker baker")[0] != encode("Baker baker")[1]
    with pytest.raises(ValueError, match="unknown word 'hello'; tinyworld knows the"):
        encode("hello world")


def test_places_of_words_are_found_first_or_last():
    assert place("Tom saw Ann and tom saw Tom".replace("Ann", "Anna"), "Tom saw", last=True) == (4, 6)
    assert place("Tom saw Anna", "Tom") == (0, 1)
    with pytest.raises(ValueError, match="'Mary' is not in 'Tom saw Anna'"):
        place("Tom saw Anna", "Mary")


def test_a_split_keeps_the_order_and_holds_out_its_share():
    seen, held_out = split(range(50), 0.2, seed=1)
    assert (len(seen), len(held_out)) == (40, 10)
    assert sorted(seen + held_out) == list(range(50))
    assert seen == sorted(seen)
    assert split(range(50), 0.2, seed=1) == (seen, held_out) != split(range(50), 0.2, seed=2)


def test_a_pair_whose_answers_are_the_same_is_refused():
    with pytest.raises(ValueError, match="answer and wrong answer are the same on prompts"):
        make_pair(["the king is a"], ["the queen is a"], ["man"], ["man"])

import numpy as np
import pytest
import torch

import mechkit as mk

RAGGED = [[3, 1, 4], [1, 5], [9, 2, 6, 5]]


class Letters:
    """A model with a stand-in tokenizer: one token per letter, `a` is 0."""

    def __init__(self, model):
        self.model, self.cfg, self.parameters, self.tokenizer = model, model.cfg, model.parameters, self

    def to_tokens(self, text, prepend_bos=True, truncate=True):
        return torch.tensor([[ord(letter) - ord("a") for letter in text.strip()]], dtype=torch.long)

    def __call__(self, tokens):
        return self.model(tokens)


@pytest.fixture(scope="module")
def letters(model):
    return Letters(model)


def test_prompts_are_padded_on_the_right():
    prompts = mk.Prompts.from_tokens(RAGGED)
    assert prompts.lengths == [3, 2, 4]
    assert prompts.tokens.shape == prompts.mask.shape == (3, 4)
    for i, row in enumerate(RAGGED):
        assert prompts.tokens[i, : len(row)].tolist() == row
        assert prompts.mask[i].tolist() == [True] * len(row) + [False] * (4 - len(row))


@pytest.mark.parametrize(
    "given",
    [[[7, 8], [9, 1]], torch.tensor([[7, 8], [9, 1]]), np.array([[7, 8], [9, 1]]), [torch.tensor([7, 8]), [9, 1]]],
)
def test_token_ids_come_as_lists_tensors_or_arrays(given):
    assert mk.Prompts.from_tokens(given).tokens.tolist() == [[7, 8], [9, 1]]


@pytest.mark.parametrize("given", [[7, 8, 9], torch.tensor([7, 8, 9]), np.array([7, 8, 9]), (7, 8, 9)])
def test_one_row_of_ids_is_one_prompt(given):
    assert mk.Prompts.from_tokens(given).tokens.tolist() == [[7, 8, 9]]


@pytest.mark.parametrize("given", [[], [[]], [[1], []]])
def test_an_empty_prompt_is_an_error(given):
    with pytest.raises(ValueError, match="a prompt is empty"):
        mk.Prompts.from_tokens(given)


def test_padding_on_the_left_is_an_error():
    with pytest.raises(ValueError, match="padded on the right"):
        mk.Prompts(torch.tensor([[0, 1, 2]]), torch.tensor([[False, True, True]]))


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ([4, 5, 6], [[4], [5], [6]]),
        (torch.tensor([4, 5, 6]), [[4], [5], [6]]),
        ([torch.tensor(4), 5, np.int64(6)], [[4], [5], [6]]),
        ([[4], [5, 7], [6]], [[4, -1], [5, 7], [6, -1]]),
        (None, None),
    ],
)
def test_answers_are_ids_with_minus_one_right_of_the_shorter(given, ids):
    answers = mk.Prompts.from_tokens(RAGGED, given).answers
    assert (None if answers is None else answers.tolist()) == ids


@pytest.mark.parametrize(
    ("given", "message"), [([4, 5], "2 answers for 3 prompts"), (4, "1 answers"), ([[4], [], [5]], "answer 1 is empty")]
)
def test_answers_that_do_not_match_the_prompts_are_errors(given, message):
    with pytest.raises(ValueError, match=message):
        mk.Prompts.from_tokens(RAGGED, given)


def test_text_answers_and_spans_become_tokens(letters):
    prompts = mk.Prompts.from_text(
        letters, ["hello", "ab"], ["x", "yz"], ["u", [2]], spans={"mid": [(1, 3), (0, 1)], "said": ["llo", "b"]}
    )
    assert prompts.tokens.tolist() == [[7, 4, 11, 11, 14], [0, 1, 0, 0, 0]]
    assert prompts.text == ("hello", "ab")
    assert prompts.answers.tolist() == [[23, -1], [24, 25]]
    assert prompts.wrong.tolist() == [[20], [2]]
    assert prompts.spans == {"mid": ((1, 3), (0, 1)), "said": ((2, 5), (1, 2))}


def test_a_span_is_not_found_in_the_padding(letters):
    # `a` is token 0, which also fills the padding.
    with pytest.raises(ValueError, match="span 's': 'a' is not a stretch of tokens of its prompt"):
        mk.Prompts.from_text(letters, ["cab", "cb"], spans={"s": ["a", "a"]})


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 1)], "given for 1 prompts, there are 2"),
        ([(0, 1), (0, 3)], r"span 's' of prompt 1 is \(0, 3\); the prompt has tokens 0 to 1"),
        ([(2, 2), (0, 1)], "span 's' of prompt 0"),
        ([(-1, 2), (0, 1)], "span 's' of prompt 0"),
    ],
)
def test_a_span_outside_its_prompt_is_an_error(letters, spans, message):
    with pytest.raises(ValueError, match=message):
        mk.Prompts.from_tokens([[1, 2, 3], [1, 2]], spans={"s": spans})
    with pytest.raises(ValueError, match=message):
        mk.Prompts.from_text(letters, ["abc", "ab"], spans={"s": spans})


def test_a_single_prompt_takes_a_single_span():
    assert mk.Prompts.from_tokens([1, 2, 3], spans={"s": (0, 2)}).spans == {"s": ((0, 2),)}


def test_positions_resolve_in_each_prompt():
    prompts = mk.Prompts.from_tokens(RAGGED, spans={"s": [(1, 3), (0, 1), (0, 4)]})
    wanted = {
        None: [[0, 1, 2], [0, 1], [0, 1, 2, 3]], 0: [0, 0, 0], -1: [2, 1, 3], "0:2": [[0, 1]] * 3,
        "-2:": [[1, 2], [0, 1], [2, 3]], ":-1": [[0, 1], [0], [0, 1, 2]], "-2:-1": [[1], [0], [2]],
        "s": [[1, 2], [0], [0, 1, 2, 3]], "s[-1]": [2, 0, 3], "s[0]": [1, 0, 0],
    }  # fmt: skip
    assert {pos: prompts.positions(pos) for pos in wanted} == wanted


@pytest.mark.parametrize(
    ("pos", "message"),
    [
        (2, "position @2 is outside a prompt of 2 tokens"),
        (-3, "position @-3 is outside"),
        ("1:3", "@1:3 is empty or reaches outside a prompt of 2 tokens"),
        ("1:1", "@1:1 is empty"),
        ("0:0", "@0:0 is empty"),
        ("2:1", "@2:1 is empty"),
        ("s[1]", r"@s\[1\] is outside its span of 1 tokens"),
        ("t", r"no span 't' \(known spans: s\)"),
    ],
)
def test_a_position_outside_a_prompt_is_an_error(pos, message):
    prompts = mk.Prompts.from_tokens([[1, 2, 3], [1, 2]], spans={"s": [(1, 3), (0, 1)]})
    with pytest.raises(ValueError, match=message):
        prompts.positions(pos)


MASKED = [torch.tensor([False, True, True]), [False, True, True]]


@pytest.mark.parametrize("chosen", [slice(1, None), [1, 2], [-2, -1], torch.tensor([1, 2]), *MASKED])
def test_a_subset_keeps_what_belongs_to_each_prompt(chosen):
    spans = {"s": [(0, 1), (1, 2), (2, 4)]}
    part = mk.Prompts.from_tokens(RAGGED, [1, 2, 3], [4, 5, 6], spans=spans, text=("x", "y", "z"))[chosen]
    assert part.lengths == [2, 4]
    assert part.tokens.tolist() == [[1, 5, 0, 0], [9, 2, 6, 5]]
    assert (part.answers.tolist(), part.wrong.tolist()) == ([[2], [3]], [[5], [6]])
    assert (part.text, part.spans) == (("y", "z"), {"s": ((1, 2), (2, 4))})


def test_a_subset_is_cut_to_its_longest_prompt_and_may_not_be_empty():
    prompts = mk.Prompts.from_tokens(RAGGED)
    assert prompts[1].tokens.tolist() == [[1, 5]]
    assert [len(prompt) for prompt in prompts] == [1, 1, 1]
    with pytest.raises(ValueError, match="no prompts are chosen, of 3"):
        prompts[[]]


def test_an_overlong_or_unknown_prompt_is_an_error(model, letters):
    with pytest.raises(ValueError, match="prompt of 13 tokens; the model's context is 12: 'aaa"):
        mk.Prompts.from_text(letters, "a" * 13)
    with pytest.raises(ValueError, match="a prompt is empty"):
        mk.Prompts.from_text(letters, ["ab", ""])
    for tokens, message in (
        ([[1], [1] * 13], "prompt 1 has 13 tokens; the model's context is 12"),
        ([[1, 2], [3, 30]], r"token id 30 of prompt 1 is outside the vocabulary \(0 to 29\)"),
        ([[-1, 2]], "token id -1 of prompt 0"),
    ):
        with pytest.raises(ValueError, match=message):
            mk.activations(model, mk.Prompts.from_tokens(tokens), "embed@0")


def test_default_answers_are_the_models_own(model, letters):
    pair = mk.Pair.from_text(letters, clean=["abcd", "xy"], corrupt=["aaaa", "xk"])
    for which, texts in (("answers", ["abcd", "xy"]), ("wrong", ["aaaa", "xk"])):
        own = [model(letters.to_tokens(text))[0, -1].argmax().item() for text in texts]
        assert getattr(pair.clean, which)[:, 0].tolist() == own
        assert getattr(pair.corrupt, which)[:, 0].tolist() == own


def test_given_answers_replace_the_models_own(letters):
    pair = mk.Pair.from_text(letters, "abc", "bbc", answer="x", wrong="y")
    assert (pair.clean.answers.tolist(), pair.clean.wrong.tolist()) == ([[23]], [[24]])


def test_the_addition_models_own_answers_are_the_sums(addition):
    pair = mk.Pair.from_text(addition, clean="35+59=", corrupt="35+51=")
    assert addition.to_string(pair.clean.answers[0]) == "94"
    assert addition.to_string(pair.clean.wrong[0]) == "86"


@pytest.mark.parametrize(("answer", "wrong"), [([5, 6], [7, 6]), ([[5], [6]], [[5, 8], [6]])])
def test_an_answer_equal_to_its_wrong_answer_is_an_error(answer, wrong):
    with pytest.raises(ValueError, match=r"answer and wrong answer are the same on prompts \[1\]"):
        mk.Pair.from_tokens([[1, 2], [3, 4]], [[1, 3], [3, 5]], answer, wrong)


def test_unequal_lengths_are_an_error_that_gives_both():
    with pytest.raises(ValueError, match="clean has 3 tokens, corrupt has 2; patching matches positions"):
        mk.Pair.from_tokens([[1, 2], [1, 2, 3]], [[1, 2], [1, 2]], [5, 5], [6, 6])
    with pytest.raises(ValueError, match="clean has 2 prompts, corrupt has 1"):
        mk.Pair.from_tokens([[1, 2], [1, 2]], [[1, 2]], None, None)


def test_unequal_lengths_are_allowed_where_both_sides_name_the_same_span(letters):
    pair = mk.Pair.from_text(letters, ["abcd"], ["abc"], "x", "y", spans={"end": [(2, 3)]})
    assert pair.clean.lengths != pair.corrupt.lengths


def test_a_subset_of_a_pair_is_a_pair():
    pair = mk.Pair.from_tokens([[1, 2], [3, 4], [5, 6]], [[1, 3], [3, 5], [5, 7]], [7, 8, 9], [1, 2, 3])[[2, 0]]
    assert pair.clean.tokens.tolist() == [[5, 6], [1, 2]]
    assert pair.corrupt.tokens.tolist() == [[5, 7], [1, 3]]
    assert pair.corrupt.wrong.tolist() == [[3], [1]]


def test_ten_thousand_prompts_are_made_and_subset_within_seconds():
    import time

    start = time.process_time()
    prompts = mk.Prompts.from_tokens([[i % 30] * (5 + i % 7) for i in range(10_000)], [1] * 10_000)
    assert len(prompts[list(range(0, 10_000, 2))].positions(-1)) == 5_000
    assert time.process_time() - start < 5  # takes a tenth of a second; a quadratic loop takes minutes


def test_text_for_a_model_without_a_tokenizer_is_an_error(model):
    with pytest.raises(ValueError, match="the model has no tokenizer to read 'abc' with; give token ids"):
        mk.Prompts.from_text(model, "abc")


def test_a_pair_can_be_corrupted_by_noise_which_stays_with_its_prompts(model):
    prompts = mk.Prompts.from_tokens([[3, 1, 4], [1, 5, 9], [2, 6, 5]], [1, 2, 3], [4, 5, 6])
    pair = mk.Pair.from_edits(prompts, [mk.Noise("embed@1", 1.0), mk.Replace("L1.attn_out@0", torch.rand(3, 16))])
    whole = mk.sweep(model, pair.corrupt, [[]], mk.logit_diff, base=pair.edits).scores
    part = pair[[2, 1]]
    assert part.corrupt is not pair.corrupt
    found = mk.sweep(model, part.corrupt, [[]], mk.logit_diff, base=part.edits).scores
    assert torch.allclose(found, whole[:, [2, 1]], atol=1e-5)  # other batch sizes use other kernels
    assert not torch.allclose(found, mk.sweep(model, part.corrupt, [[]], mk.logit_diff).scores, atol=1e-2)
    with pytest.raises(ValueError, match="no edits are given"):
        mk.Pair.from_edits(prompts, [])

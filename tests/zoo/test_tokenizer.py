"""The word tokenizer: exact on what it knows, an error that names what it does not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechkit.zoo.addition.tasks import TOKENS
from mechkit.zoo.tokenizer import WordTokenizer, word_tokenizer


def make(words=TOKENS) -> WordTokenizer:
    return WordTokenizer(word_tokenizer(words), name="the addition model", knows="the numbers 0 to 198")


TOKENIZER = make()


@given(st.integers(0, 198), st.integers(0, 198), st.sampled_from("+<"), st.sampled_from(["", " ", "\n"]))
def test_two_numbers_and_two_signs_are_four_tokens_however_they_are_spaced(a, b, sign, space):
    text = space.join([str(a), sign, str(b), "="])
    assert TOKENIZER(text)["input_ids"] == [a, TOKENS.index(sign), b, TOKENS.index("=")]
    assert TOKENIZER.encode(text) == TOKENIZER(text)["input_ids"]


def test_text_comes_back_from_its_tokens():
    assert TOKENIZER.decode(TOKENIZER.encode("35 + 59 =")) == "35+59="
    assert TOKENIZER.batch_decode([[35], [TOKENS.index("+")]]) == ["35", "+"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("35+590=", "590"),
        ("35+x=", "x"),
        ("035+59=", "035"),
        ("35-59=", "-"),
        ("35+５=", "５"),
        ("35+5.9=", "."),
        ("𝟛+1=", "𝟛"),
    ],
)
@pytest.mark.parametrize(
    "read", [TOKENIZER, TOKENIZER.encode, TOKENIZER.tokenize, lambda text: TOKENIZER(["1+1=", text])]
)
def test_an_unknown_word_is_an_error_that_names_it_and_the_prompt(read, text, named):
    with pytest.raises(ValueError, match="unknown token") as error:
        read(text)
    assert f"unknown token {named!r} in {text!r}; the addition model knows the numbers 0 to 198" in str(error.value)


@pytest.mark.parametrize("text", ["", "  ", [], ["35+59=", ""]])
def test_an_empty_prompt_is_an_error(text):
    with pytest.raises(ValueError, match="empty prompt"):
        TOKENIZER(text)


def test_padding_typed_out_is_an_error():
    with pytest.raises(ValueError, match="<pad> typed out"):
        TOKENIZER("<pad>35+59=")


def test_a_prompt_is_never_cut_short():
    with pytest.raises(ValueError, match=r"'1\+2\+3=' has 6 tokens; the addition model reads at most 5"):
        TOKENIZER("1+2+3=", truncation=True, max_length=5)
    assert len(TOKENIZER("1+2+3=")["input_ids"]) == 6


def test_unequal_prompts_are_padded_on_the_right():
    batch = TOKENIZER(["35+59=", "next 35="], padding=True)["input_ids"]
    assert batch[1] == [TOKENS.index("next"), 35, TOKENS.index("="), TOKENS.index("<pad>")]


def test_words_of_a_language_are_told_apart_by_case_and_apostrophe():
    tokenizer = WordTokenizer(word_tokenizer(["<pad>", "<s>", "Lily", "lily", "don't", ".", "é"]), name="a model")
    assert tokenizer.encode("<s>Lily don't. lily é") == [1, 2, 4, 5, 3, 6]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["a"], "no <pad>"), (["<pad>", "a", "a"], "given twice: ['a']"), (["<pad>", "a b"], "would be split: ['a b']")],
)
def test_a_word_list_that_cannot_work_is_refused(words, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        word_tokenizer(words)


WORDS = ["<pad>", "<bos>", "the", "Paris", "Baker", "baker", "->", ",", "17"]


def spaced(any_case=True):
    made = word_tokenizer(WORDS, pieces=r"<\w+>|->|\d\d|\w+|\S", spaced=True)
    return WordTokenizer(made, name="a small model", any_case=any_case)


def test_a_word_in_another_case_is_read_as_the_one_that_is_known():
    tokenizer = spaced()
    assert tokenizer("The paris, BAKER baker Baker 1717")["input_ids"] == [2, 3, 7, 5, 5, 4, 8, 8]
    assert tokenizer(["The", "PARIS"])["input_ids"] == [[2], [3]]
    assert tokenizer.encode("The -> Paris") == [2, 6, 3]
    assert tokenizer.tokenize("The paris") == ["the", "Paris"]
    with pytest.raises(ValueError, match="unknown token 'The'"):
        spaced(any_case=False)("The Paris")


def test_decoded_words_have_spaces_between_them_but_not_before_a_comma():
    tokenizer = spaced()
    assert tokenizer.decode([2, 3, 7, 4]) == "the Paris, Baker"
    assert tokenizer.batch_decode([[2], [7]]) == ["the", ","]
    assert tokenizer.encode(tokenizer.decode([2, 3, 7, 6, 8, 8])) == [2, 3, 7, 6, 8, 8]


def test_a_bos_in_the_list_is_the_tokenizer_s():
    assert spaced().bos_token_id == 1
    assert spaced()("<bos>The Paris")["input_ids"] == [1, 2, 3]
    assert TOKENIZER.bos_token is None

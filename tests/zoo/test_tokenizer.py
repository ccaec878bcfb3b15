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

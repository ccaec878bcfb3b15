"""Word tokenizers that refuse what they do not know.

A small model knows a closed list of words. `word_tokenizer` turns that list into a Hugging Face `tokenizers`
object, which is saved as `tokenizer.json`; `WordTokenizer` loads it and works wherever TransformerLens wants a
tokenizer. Text splits into numbers, letters and single signs, spaces only separate, and a word that is not in
the list is an error that names it. A tokenizer of any case reads "The" as "the" where only that is in the list.

>>> tokenizer = WordTokenizer(word_tokenizer(["<pad>", "3", "5", "+", "="]), name="the tiny model", knows="3 and 5")
>>> tokenizer("3+5=")["input_ids"]
[1, 3, 2, 4]
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse, WordPiece
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence as InTurn
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

PAD, BOS = "<pad>", "<bos>"
PIECES = r"<\w+>|\d+|[^\W\d_]+(?:'[^\W\d_]+)?|."
"""What one word is: a bracketed name, a number, letters (with one apostrophe inside), or a single sign."""


def word_tokenizer(words: Sequence[str], *, pieces: str = PIECES, spaced: bool = False) -> Tokenizer:
    """A tokenizer whose token ids are the places of `words`; `<pad>` must be among them.

    `pieces` is the regular expression of one word. With `spaced` decoded words have a space between them, but for
    punctuation; without, they are put together as they are. Raises ValueError where a word occurs twice, would be
    split, or `<pad>` is missing.
    """
    if PAD not in words:
        raise ValueError(f"no {PAD} among the {len(words)} words; batches of unequal prompts need it")
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise ValueError(f"words given twice: {twice}; each token needs its own word")
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=PAD))
    tokenizer.pre_tokenizer = InTurn([WhitespaceSplit(), Split(Regex(pieces), "isolated")])
    tokenizer.decoder = WordPiece(prefix=PAD, cleanup=True) if spaced else Fuse()
    split = [word for word in words if _words(tokenizer, word) != [word]]
    if split:
        raise ValueError(f"words that would be split: {split}; a word is a number, letters or one sign")
    return tokenizer


class WordTokenizer(PreTrainedTokenizerFast):
    """A tokenizer for a closed list of words, for TransformerLens and Hugging Face callers alike.

    Raises ValueError for text with an unknown word, for `<pad>` typed out, for an empty prompt, and where a
    prompt would be cut short. `encode("")` alone is allowed: TransformerLens asks it whether the
    tokenizer prepends a token. `<bos>` is its BOS if it is in the list.
    """

    def __init__(
        self, tokenizer_object: Tokenizer, *, name: str, knows: str = "", any_case: bool = False, **settings: Any
    ):
        """`name` is how errors call the model, `knows` what they say it knows ("the numbers 0 to 9").

        With `any_case` a word that is not in the list is read as the one that differs from it in case only.
        """
        bos = {} if tokenizer_object.token_to_id(BOS) is None else {"bos_token": BOS}
        settings = {"pad_token": PAD, "eos_token": PAD, "name_or_path": name, **bos, **settings}
        super().__init__(tokenizer_object=tokenizer_object, **settings)
        self.model_input_names = ["input_ids", "attention_mask"]
        # Without this TransformerLens looks for a variant that prepends a BOS, on the Hub, under `name`.
        self.init_kwargs["add_bos_token"] = True
        self._name, self._knows = name, knows
        self._spelled = {word.lower(): word for word in sorted(tokenizer_object.get_vocab())} if any_case else {}

    def __call__(self, text: str | Sequence[str] | None = None, *args: Any, **options: Any):
        """Token ids of one prompt or a list of them, padded on the right when asked; see the class."""
        for prompt in _prompts(text):
            self._check(prompt, _limit(options))
        spelled = self.spelled(text) if isinstance(text, str) else [self.spelled(prompt) for prompt in _prompts(text)]
        return super().__call__(spelled, *args, **options)  # pyright: ignore[reportArgumentType]

    def encode(self, text: str, *args: Any, **options: Any) -> list[int]:
        """Token ids of one prompt; see the class."""
        if text == "":
            return []
        self._check(text, _limit(options))
        return super().encode(self.spelled(text), *args, **options)

    def tokenize(self, text: str, *args: Any, **options: Any) -> list[str]:
        """The words of one prompt; see the class."""
        self._check(text, None)
        return super().tokenize(self.spelled(text), *args, **options)

    def spelled(self, text: str) -> str:
        """The text with each word in the case that is known; the same text where there is nothing to change."""
        if not self._spelled:
            return text
        pieces = self.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        for word, (start, end) in pieces:
            if self.backend_tokenizer.token_to_id(word) is None and word.lower() in self._spelled:
                text = text[:start] + self._spelled[word.lower()] + text[end:]
        return text

    def _check(self, prompt: str, limit: int | None) -> None:
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt is text, not {type(prompt).__name__}; this tokenizer knows {self._knows}")
        words = _words(self.backend_tokenizer, self.spelled(prompt))
        if not words:
            raise ValueError(f"empty prompt {prompt!r}; {self._name} knows {self._knows}")
        for word in words:
            if word == PAD:
                raise ValueError(f"{PAD} typed out in {prompt!r}; it only fills up shorter prompts of a batch")
            if self.backend_tokenizer.token_to_id(word) is None:
                raise ValueError(f"unknown token {word!r} in {prompt!r}; {self._name} knows {self._knows}")
        if limit is not None and len(words) > limit:
            raise ValueError(f"{prompt!r} has {len(words)} tokens; {self._name} reads at most {limit}")


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _prompts(text: str | Iterable[str] | None) -> list:
    if isinstance(text, str) or text is None:
        return [text]
    prompts = list(text)
    return prompts or [""]


def _limit(options: dict) -> int | None:
    return options.get("max_length") if options.get("truncation") else None

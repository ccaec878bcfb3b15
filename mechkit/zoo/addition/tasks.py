"""The tasks the addition model is trained on, and the sums it never sees.

Every task is text that ends in a sign, and the model answers with one token after it:

    sum          35+59=      94
    last digit   last 94=    4
    tens         tens 94=    9
    successor    next 35=    36
    parity       even 94=    yes
    comparison   35<59=      yes

The token of a number is the number itself, so a batch is built with arithmetic on token ids.

>>> sums_text([(35, 59), (1, 2)])
['35+59=', '1+2=']
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

import torch
from jaxtyping import Int
from torch import Tensor

N_OPERANDS = 100
"""Operands of a sum are 0 to 99."""
N_NUMBERS = 199
"""The numbers 0 to 198, all that two operands can sum to; token id n is the number n."""
WORDS = ("<pad>", "+", "=", "<", "last", "tens", "next", "even", "yes", "no")
"""The words after the numbers, in the order of their token ids."""
TOKENS = (*(str(number) for number in range(N_NUMBERS)), *WORDS)
"""The text of every token, by token id."""
ID = {token: index for index, token in enumerate(TOKENS)}
"""Token id of each token's text."""
N_POSITIONS = 4
"""Tokens in a sum, the longest prompt."""
MIX = {"sum": 0.5, "last": 0.1, "tens": 0.1, "next": 0.1, "even": 0.1, "less": 0.1}
"""Share of each task in a training batch."""

Batch = tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt"], Int[Tensor, "prompt"]]
"""Tokens padded on the right, the answer's token, and the position that answers."""


@cache
def unseen_sums() -> list[tuple[int, int]]:
    """The sums no model or transcoder was trained on: both orders of 1,000 unordered pairs, sorted."""
    text = files("mechkit.zoo.addition").joinpath("split.json").read_text()
    pairs = [(a, b) for a, b in json.loads(text)["unseen_pairs"]]
    return sorted({pair for a, b in pairs for pair in ((a, b), (b, a))})


@cache
def seen_sums() -> list[tuple[int, int]]:
    """The other sums of two operands below 100, which training draws from, sorted."""
    unseen = set(unseen_sums())
    return [(a, b) for a in range(N_OPERANDS) for b in range(N_OPERANDS) if (a, b) not in unseen]


def sums_text(sums: Iterable[tuple[int, int]]) -> list[str]:
    """The prompt of each sum, as in `35+59=`."""
    return [f"{a}+{b}=" for a, b in sums]


def sums_tokens(sums: Iterable[tuple[int, int]]) -> Int[Tensor, "prompt pos"]:
    """Token ids of the prompt of each sum; the last of the 4 positions is the `=`."""
    operands = torch.tensor(list(sums), dtype=torch.long).reshape(-1, 2)
    return _prompt(operands[:, 0], "+", operands[:, 1], "=")


def sums_answers(sums: Iterable[tuple[int, int]]) -> Int[Tensor, "prompt"]:
    """Token id of the right answer to each sum."""
    return torch.tensor([a + b for a, b in sums], dtype=torch.long)


def sample(task: str, n: int, generator: torch.Generator) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt"]]:
    """`n` prompts of one task and their answers; sums are drawn from `seen_sums` only."""
    draw = _DRAWS.get(task)
    if draw is None:
        raise ValueError(f"no task {task!r}; the tasks are {', '.join(_DRAWS)}")
    return draw(n, generator)


def sample_batch(n: int, generator: torch.Generator, mix: Mapping[str, float] = MIX) -> Batch:
    """About `n` prompts, each task with its share of `mix`, padded on the right to the longest prompt."""
    tokens, answers, last = [], [], []
    for task, share in mix.items():
        prompts, right = sample(task, round(n * share), generator)
        width = prompts.shape[1]
        tokens.append(torch.nn.functional.pad(prompts, (0, N_POSITIONS - width), value=ID["<pad>"]))
        answers.append(right)
        last.append(torch.full_like(right, width - 1))
    return torch.cat(tokens), torch.cat(answers), torch.cat(last)


def draw_split(seed: int, n_pairs: int = 1000) -> list[tuple[int, int]]:
    """`n_pairs` unordered pairs of operands to hold out, (35, 59) always among them, sorted.

    This is how `split.json` was made; the saved file is what counts.
    """
    pairs = [(a, b) for a in range(N_OPERANDS) for b in range(a, N_OPERANDS) if (a, b) != (35, 59)]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return sorted([(35, 59), *(pairs[index] for index in order[: n_pairs - 1].tolist())])


def _sum(n: int, generator: torch.Generator):
    table = _seen_table()
    operands = table[torch.randint(len(table), (n,), generator=generator)]
    return _prompt(operands[:, 0], "+", operands[:, 1], "="), operands.sum(1)


def _last(n: int, generator: torch.Generator):
    number = torch.randint(N_NUMBERS, (n,), generator=generator)
    return _prompt("last", number, "="), number % 10


def _tens(n: int, generator: torch.Generator):
    number = torch.randint(N_NUMBERS, (n,), generator=generator)
    return _prompt("tens", number, "="), number // 10


def _next(n: int, generator: torch.Generator):
    number = torch.randint(N_NUMBERS - 1, (n,), generator=generator)
    return _prompt("next", number, "="), number + 1


def _even(n: int, generator: torch.Generator):
    number = torch.randint(N_NUMBERS, (n,), generator=generator)
    return _prompt("even", number, "="), torch.where(number % 2 == 0, ID["yes"], ID["no"])


def _less(n: int, generator: torch.Generator):
    a, b = torch.randint(N_NUMBERS, (2, n), generator=generator)
    return _prompt(a, "<", b, "="), torch.where(a < b, ID["yes"], ID["no"])


_DRAWS = {"sum": _sum, "last": _last, "tens": _tens, "next": _next, "even": _even, "less": _less}


@cache
def _seen_table() -> Int[Tensor, "sum operand"]:
    return torch.tensor(seen_sums())


def _prompt(*pieces: str | Int[Tensor, "prompt"]) -> Int[Tensor, "prompt pos"]:
    """Columns of token ids side by side; a word is the same in every row."""
    n = next(len(piece) for piece in pieces if not isinstance(piece, str))
    return torch.stack([torch.full((n,), ID[p]) if isinstance(p, str) else p for p in pieces], dim=1)

"""The small language model "tinyworld" and the world it speaks of: facts, names, years, tasks, each with a split.

`mechkit.zoo.load("tinyworld")` gives the model; `card.md` beside this file says how it was made and how good it is.
Each behaviour is a module with a generator of training text, a split by content, and a builder of clean/corrupt pairs
that needs no model: `facts`, `ioi`, `induction`, `greater_than`, `in_context`, `agreement`, `pronouns`, `analogies`,
`calendar`, `false_belief` and `sums`, all of them in `BUILDERS` by name, called as `BUILDERS[name](n, seed)`. Prompts
are held-out ones unless `held_out=False`, and start with a BOS.

>>> from mechkit.zoo.tinyworld import BUILDERS
>>> BUILDERS["facts"](2, seed=0).clean.text
('tourists who want the Prado Theater fly to the land of', 'Chanel Perfumes was started by')
"""

from mechkit.core.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "BUILDERS": "builders",
        "Score": "behaviours",
        "decode": "text",
        "encode": "text",
        "measure": "behaviours",
    },
)

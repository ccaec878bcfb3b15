"""One intervention on a prompt's features: what the graph predicts of it, and what the model does.

What a feature writes is shifted, to every layer that it reaches; what else the MLP writes, its dictionary's error
included, stays the model's own. Chosen parts can be held at their values on the prompt:

    attention     attention patterns
    norms         the scales of all norms
    mlps          features and errors of every layer; of some layers with `constrain`, so that what is changed acts
                  from the end of these layers on (constrained patching)
    errors        dictionaries stand in for MLPs and miss what they missed: the local replacement model

    graph.intervene({"L0 sum at =": 0.0})
    graph.intervene({"1_20_3": -1.0}, freeze=("attention", "norms"))
    graph.intervene(swap={"1_20_3": "L1.mlp_out[addition]#41"}, generate=3)

Source: Ameisen et al. 2025, section "Validating attribution graph hypotheses" (constrained patching, steering).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.graphs.nodes import Node, token_text
from mechkit.graphs.truth.changes import Change, Reference, changes
from mechkit.graphs.truth.effects import Effects
from mechkit.graphs.truth.exact import shift
from mechkit.graphs.truth.held import HeldRuns, Hold
from mechkit.graphs.truth.root_values import RootReader

PARTS = ("attention", "norms", "mlps", "errors")
"""What can be held."""


@dataclass(frozen=True, eq=False, repr=False)
class Intervened:
    """What an intervention did to a prompt's answer, beside what the graph predicts."""

    changes: Sequence[Change]
    """What was changed."""
    freeze: Sequence[str]
    """What was held at its values on the prompt."""
    before: Float[Tensor, "vocab"]
    """The model's logits after the prompt."""
    after: Float[Tensor, "vocab"]
    """The same after the changes."""
    roots: Sequence[Node]
    """What the graph explains."""
    predicted: Float[Tensor, "root"]
    """Change of each root by the graph, to first order."""
    measured: Float[Tensor, "root"]
    """Change of each root in the model."""
    named: Callable[[int], str]
    """The text of a token."""
    generated: tuple[Sequence[int], Sequence[int]] | None = None
    """Tokens that the model goes on with as it is, and with the changes made; None where not asked."""

    @property
    def answer(self) -> str:
        """The likeliest next token after the changes."""
        return self.named(int(self.after.argmax()))

    @property
    def continuation(self) -> str:
        """What the model goes on with after the changes. Raises ValueError where nothing was generated."""
        if self.generated is None:
            raise ValueError("nothing was generated; intervene with generate=n for n tokens")
        return "".join(map(self.named, self.generated[1]))

    def top(self, n: int = 5) -> pd.DataFrame:
        """The likeliest next tokens before or after the changes: logits and probabilities."""
        both = torch.stack([self.before, self.after]).float()
        chosen = list(dict.fromkeys(both.topk(min(n, both.shape[1])).indices.flatten().tolist()))
        columns = {"token": [self.named(i) for i in chosen]}
        for name, row, share in zip(("before", "after"), both, both.softmax(-1), strict=True):
            columns |= {f"logit {name}": row[chosen].tolist(), f"probability {name}": share[chosen].tolist()}
        return pd.DataFrame(columns)

    def frame(self) -> pd.DataFrame:
        """One row per root: predicted and measured change, in the root's unit."""
        columns = {"root": [node.name for node in self.roots]}
        return pd.DataFrame({**columns, "predicted": self.predicted.tolist(), "measured": self.measured.tolist()})

    def __repr__(self) -> str:
        held = f"{', '.join(self.freeze)} frozen" if self.freeze else "nothing frozen"
        what = "\n".join(f"  {change}" for change in self.changes[:_SHOWN])
        more = f"\n  and {len(self.changes) - _SHOWN} more" if len(self.changes) > _SHOWN else ""
        tables = (one.to_string(index=False, float_format="{:.3f}".format) for one in (self.frame(), self.top()))
        said = (
            ""
            if self.generated is None
            else "\ngoes on: {!r}; as it is: {!r}".format(
                *("".join(map(self.named, tokens)) for tokens in reversed(self.generated))
            )
        )
        return f"{len(self.changes)} changed, {held}\n{what}{more}\n" + "\n".join(tables) + said


_SHOWN = 6
"""Changes that are listed."""


@torch.no_grad()
def intervene(
    graph,
    values: Mapping[Reference, float] | None = None,
    *,
    to: str = "multiple",
    swap: Mapping[Reference, Reference] | None = None,
    freeze: Sequence[str] = (),
    constrain: range | None = None,
    generate: int = 0,
    every: bool = False,
) -> Intervened:
    """Set features or supernodes, by node, id, site (`L0.mlp_out[name]@3#17`) or supernode's name, and read the answer.

    A number is a multiple of the activation on the prompt (0 suppresses), or with `to` its value, or what is added to
    it. `swap` takes features out and puts others in their place. `freeze` names what is held (`PARTS`), `constrain` the
    layers whose features and errors are held. With `generate` as many tokens follow, greedily, before and after; the
    changes are made at the prompt's positions, and with `every` at all later ones.

    Unit: logits and the roots' own. Cost: one forward pass of two rows, and two passes per token that is generated.
    Raises ValueError for what is no feature, a part that cannot be held, and a prompt that grows past the context.
    """
    made = changes(graph, values or {}, to=to, swap=swap)
    if not made:
        raise ValueError("nothing is changed; name a feature or supernode and how active it is made")
    hold = held_parts(graph, freeze, constrain)
    runs = HeldRuns(graph, hold)
    edited = [{}, shift(graph, [(change.node, change.by) for change in made])]
    readers = [RootReader.of(graph, i) for i in range(len(graph.roots))]
    logits, seen = runs.all(edited, [reader.site.hook for reader in readers])
    at = [reader.of_hook(seen, norms_held=hold.norms) for reader in readers]
    model = graph.attribution.frozen.model
    return Intervened(
        changes=made,
        freeze=[*freeze, *([] if constrain is None else [f"layers {constrain.start} to {constrain.stop - 1}"])],
        before=logits[0],
        after=logits[1],
        roots=graph.roots,
        predicted=torch.stack([Effects(graph, i, [made], hold.mlps).along_paths[0] for i in range(len(readers))]),
        measured=torch.stack([value[1] - value[0] for value in at]),
        named=lambda token: token_text(model, token),
        generated=_continued(graph, made, hold, generate, every) if generate else None,
    )


def held_parts(graph, freeze: Sequence[str], constrain: range | None) -> Hold:
    """What `freeze` and `constrain` hold. Raises ValueError for parts and layers that there are not."""
    names, n_layers = [freeze] if isinstance(freeze, str) else list(freeze), graph.attribution.frozen.model.cfg.n_layers
    wrong = [name for name in names if name not in PARTS]
    if wrong:
        raise ValueError(f"cannot freeze {wrong[0]!r}; there are {', '.join(PARTS)}")
    if constrain is not None and not (0 <= constrain.start < constrain.stop <= n_layers and constrain.step == 1):
        raise ValueError(f"constrain is {constrain}; the model has layers 0 to {n_layers - 1}")
    layers = range(n_layers) if "mlps" in names else constrain or range(0)
    return Hold("attention" in names, "norms" in names, layers, "errors" in names)


def _continued(graph, made: Sequence[Change], hold: Hold, n: int, every: bool) -> tuple[Sequence[int], Sequence[int]]:
    """What the model goes on with, as it is and with the changes."""
    from mechkit.graphs.truth.generation import continued, steering_hooks

    return continued(graph, [], n), continued(graph, steering_hooks(graph, made, hold, every=every), n)

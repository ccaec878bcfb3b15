"""What a batch of toy models is: widths, and for each instance its probabilities, importances and seed.

A feature is on with its own probability (1 - S in the papers) and then uniform on [0, 1]; features of a correlated
group are on together, of an anticorrelated group one at a time. `KINDS` are the models that read and rebuild them.

>>> instances(20, 5, probability=torch.tensor([[1.0], [0.1]]), importance=0.7 ** torch.arange(20.0)).probability.shape
torch.Size([2, 20])
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Groups = tuple[tuple[int, ...], ...]
"""Features that are on together, or one at a time."""


@dataclass(frozen=True)
class Kind:
    """One architecture: h = f(W x), x' = g(W_out h + b)."""

    words: str
    """What it is called in a sentence."""
    tied: bool = True
    """Whether W_out is W transposed."""
    hidden_relu: bool = False
    """Whether f is a ReLU, which makes hidden dimensions neurons; else the identity."""
    output_relu: bool = True
    """Whether g is a ReLU; else the identity."""
    signed: bool = False
    """Whether features are on [-1, 1] and x' is to be their absolute value; else on [0, 1] and rebuilt as they are."""


KINDS = {
    "relu": Kind("ReLU output, x' = ReLU(W^T W x + b)"),
    "linear": Kind("linear, x' = W^T W x + b", output_relu=False),
    "hidden": Kind("ReLU hidden layer, x' = ReLU(W^T ReLU(W x) + b)", hidden_relu=True),
    "absolute": Kind("absolute value, y' = ReLU(W_out ReLU(W x) + b)", tied=False, hidden_relu=True, signed=True),
}
"""The models of Elhage et al. 2022, by name."""


@dataclass(frozen=True, eq=False)
class Toys:
    """Instances of one toy model; take some of them with `toys[2:5]` or `toys[mask]`."""

    kind: Kind
    """The architecture, the same for all."""
    d_hidden: int
    """Hidden dimensions, m in the papers."""
    probability: Float[Tensor, "instance feature"]
    """How often each feature is on (1 - S), within its group where it has one."""
    importance: Float[Tensor, "instance feature"]
    """Weight of each feature's squared error."""
    seed: Int64[Tensor, "instance"]
    """What an instance starts from and sees: two of one seed start alike and see the same uniform draws."""
    correlated: Groups = ()
    """Groups of features that are all on or all off, their values independent."""
    anticorrelated: Groups = ()
    """Groups of which at most one feature is on; probabilities add up to at most 1."""

    @property
    def n_features(self) -> int:
        """Features of each instance, n in the papers."""
        return self.probability.shape[1]

    def __len__(self) -> int:
        return len(self.seed)

    def __getitem__(self, which) -> "Toys":
        parts = {name: getattr(self, name)[which] for name in ("probability", "importance", "seed")}
        return replace(self, **parts)

    def to(self, device) -> "Toys":
        """The same on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


def instances(
    n_features: int,
    d_hidden: int,
    *,
    kind: str = "relu",
    probability: Float[Tensor, "..."] | float = 1.0,
    importance: Float[Tensor, "..."] | float = 1.0,
    seed: Int64[Tensor, "instance"] | Sequence[int] | int = 0,
    correlated: Sequence[Sequence[int]] = (),
    anticorrelated: Sequence[Sequence[int]] = (),
) -> Toys:
    """Toy models to train, as many as `probability`, `importance` and `seed` have rows between them.

    `probability` (1 - S) and `importance` are broadcast to [instance, feature]: `[:, None]` gives each instance its
    own, a plain row each feature. In `anticorrelated` groups a feature's probability is still how often it is on.
    Raises ValueError for shapes that do not fit, probabilities outside (0, 1], importances below 0, groups that
    overlap, correlated features of different probability, or anticorrelated ones that add up to more than 1.
    Source: Elhage et al. 2022, Toy Models of Superposition, sections 2 and 4 to 6.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
    if n_features < 1 or d_hidden < 1:
        raise ValueError(f"{n_features} features in {d_hidden} hidden dimensions; both must be at least 1")
    p, weight = (torch.as_tensor(value, dtype=torch.float32) for value in (probability, importance))
    seeds = torch.as_tensor(seed, dtype=torch.int64).reshape(-1)
    try:
        n = torch.broadcast_shapes(p.shape, weight.shape, (len(seeds), n_features))[0]
        p, weight = (value.expand(n, n_features) for value in (p, weight))
    except RuntimeError as error:
        raise ValueError(
            f"probability {list(p.shape)}, importance {list(weight.shape)} and {len(seeds)} seeds do not broadcast to "
            f"[instance, {n_features}]; one number per instance is a column, [:, None]"
        ) from error
    made = Toys(
        KINDS[kind], d_hidden, p.clone(), weight.clone(), seeds.expand(n).clone(),
        tuple(map(tuple, correlated)), tuple(map(tuple, anticorrelated)),
    )  # fmt: skip
    _check_numbers(made)
    _check_groups(made)
    return made


def _check_numbers(toys: Toys) -> None:
    p, weight = toys.probability, toys.importance
    if not bool(((p > 0) & (p <= 1)).all()):
        raise ValueError(
            f"probabilities are {p.min():g} to {p.max():g}; each is how often a feature is on, above 0 and at most 1"
        )
    if not bool((weight.isfinite() & (weight >= 0)).all()):
        raise ValueError(f"importances are {weight.min():g} to {weight.max():g}; they must be finite and at least 0")


def _check_groups(toys: Toys) -> None:
    members = [feature for group in toys.correlated + toys.anticorrelated for feature in group]
    if len(set(members)) < len(members) or not all(0 <= feature < toys.n_features for feature in members):
        raise ValueError(
            f"groups name features {sorted(members)}; each of 0 to {toys.n_features - 1} may be in one group, once"
        )
    for group in map(list, toys.correlated):
        p = toys.probability[:, group]
        if not torch.equal(p, p[:, :1].expand_as(p)):
            raise ValueError(f"correlated features {group} are on together, so their probabilities must be equal")
    for group in map(list, toys.anticorrelated):
        most = float(toys.probability[:, group].sum(1).max())
        if most > 1 + 1e-6:
            raise ValueError(
                f"probabilities of anticorrelated features {group} add up to {most:g}; only one is on at a time, "
                "so they may add up to at most 1"
            )

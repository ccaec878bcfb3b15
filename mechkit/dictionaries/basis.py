"""What attribution graphs ask of a feature basis: what features read, how they gate, and what they write.

A basis holds the features of one layer. A feature has one pre-activation, or several `parts` (a gated neuron has a gate
and a linear one), each linear in what `hook_in` holds; its activation is some function of them. It writes its
decoder's direction, times its activation, to the MLP outputs of the layers it reaches: its own, or later ones too.
`Transcoder`, `CrossLayerTranscoder` and `GatedNeurons` are bases; any object with these members is one.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Basis(Protocol):
    """The features of one layer."""

    @property
    def layer(self) -> int:
        """The layer whose MLP input they read."""
        ...

    @property
    def name(self) -> str:
        """What the basis is called in results."""
        ...

    @property
    def hook_in(self) -> str:
        """The hook that holds what they read."""
        ...

    @property
    def hook_out(self) -> str:
        """The hook that they write to, in their own layer."""
        ...

    @property
    def d_features(self) -> int:
        """How many features there are."""
        ...

    @property
    def parts(self) -> Sequence[str]:
        """Names of a feature's pre-activations; `("",)` where there is one."""
        ...

    @property
    def reaches(self) -> range:
        """Layers whose MLP output they write to."""
        ...

    @property
    def b_dec(self) -> Float[Tensor, "d_model"]:
        """What is written to the basis's own layer whatever the features do."""
        ...

    @property
    def W_skip(self) -> Any:
        """Linear part `[d_out, d_in]` from the basis's input to its own layer's output, or None."""
        ...

    def sums(self, x: Float[Tensor, "pos d_in"]) -> tuple[Float[Tensor, "pos feature"], ...]:
        """Pre-activations by part."""
        ...

    def activations(self, x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos feature"]:
        """How active each feature is; 0 where it writes nothing."""
        ...

    def slopes(self, x: Float[Tensor, "pos d_in"]) -> tuple[Float[Tensor, "pos feature"], ...]:
        """Derivative of each activation by each of its parts."""
        ...

    def reads(self, ids: Sequence[int], part: str = "") -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n"]]:
        """The directions that these features read for one part, and what is added to each."""
        ...

    def writes(self, ids: Sequence[int], layer: int) -> Float[Tensor, "n d_model"]:
        """The directions that these features write to one of the layers they reach, for an activation of 1."""
        ...

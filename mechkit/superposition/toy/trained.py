"""Toys after training: their weights, how the loss went, and the file they are kept in.

>>> from mechkit.superposition.toy import Exact, instances, train
>>> train(instances(2, 1), Exact(4), n_steps=10).save("toys.safetensors")
PosixPath('toys.safetensors')
>>> Trained.load("toys.safetensors").W.shape
torch.Size([1, 1, 2])
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from jaxtyping import Float, Int64
from torch import Tensor

from mechkit.core.files import write_atomic
from mechkit.superposition.measures import dimensions_per_feature
from mechkit.superposition.toy.toys import Kind, Toys
from mechkit.superposition.toy.weights import Weights

_NAMES = ("W", "b", "W_out")
"""Parameters, as the file calls them."""


@dataclass(frozen=True, eq=False)
class Trained:
    """Toys after training."""

    toys: Toys
    """What they are."""
    weights: Weights
    """Their parameters."""
    losses: Float[Tensor, "window instance"]
    """Mean loss over each window of steps (the last may be shorter), by its own data; NaN once an instance stopped."""
    window: int
    """Steps of a window."""
    n_steps: Int64[Tensor, "instance"]
    """Steps each instance took."""

    @property
    def W(self) -> Float[Tensor, "instance hidden feature"]:
        """What the hidden dimensions read."""
        return self.weights.W

    @property
    def b(self) -> Float[Tensor, "instance feature"]:
        """What is added to each output."""
        return self.weights.b

    @property
    def features(self) -> Float[Tensor, "instance feature hidden"]:
        """The features' directions as rows, which is what the measures of superposition take."""
        return self.W.mT

    @property
    def loss(self) -> Float[Tensor, "instance"]:
        """Mean loss over the last window each instance was trained in."""
        last = (-(-self.n_steps // self.window) - 1).clamp(min=0)
        return self.losses.gather(0, last[None])[0]

    def __getitem__(self, which) -> "Trained":
        return Trained(self.toys[which], self.weights[which], self.losses[:, which], self.window, self.n_steps[which])

    def frame(self) -> pd.DataFrame:
        """A row per instance: mean probability, seed, last loss, steps, squared norm of W and D* = m / |W|^2."""
        table = {
            "probability": self.toys.probability.mean(1),
            "seed": self.toys.seed,
            "loss": self.loss,
            "n_steps": self.n_steps,
            "squared_norm": self.W.square().sum((1, 2)),
            "dimensions_per_feature": dimensions_per_feature(self.features),
        }
        return pd.DataFrame({name: values.cpu().numpy() for name, values in table.items()})

    def save(self, path: str | os.PathLike) -> Path:
        """Write all of it to one safetensors file; returns the path."""
        from safetensors.torch import save

        toys, weights = self.toys, dict(zip(_NAMES, self.weights, strict=False))
        tensors = {"probability": toys.probability, "importance": toys.importance, "seed": toys.seed, **weights}
        tensors |= {"losses": self.losses, "n_steps": self.n_steps}
        about = {"kind": asdict(toys.kind), "d_hidden": toys.d_hidden, "window": self.window}
        about |= {"correlated": toys.correlated, "anticorrelated": toys.anticorrelated}
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        return write_atomic(path, save(plain, {"mechkit toys": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Trained":
        """What `save` wrote, on the CPU. Raises ValueError for another file, OSError where it cannot be read."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(path), "pt") as file:
                about = json.loads((file.metadata() or {})["mechkit toys"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"'{path}' holds no trained toys; give a file that Trained.save wrote") from error
        groups = (tuple(map(tuple, about[name])) for name in ("correlated", "anticorrelated"))
        numbers = (tensors[name] for name in ("probability", "importance", "seed"))
        toys = Toys(Kind(**about["kind"]), about["d_hidden"], *numbers, *groups)
        weights = Weights(*(tensors[name] for name in _NAMES if name in tensors))
        return cls(toys, weights, tensors["losses"], about["window"], tensors["n_steps"])

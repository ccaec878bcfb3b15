"""What targets read: directions in the residual stream of a frozen model, and what is added to them by biases.

`Reads` is a group of targets at one position: their directions over the residual stream at one stage of one layer. A
stage is `pre` or `mid`, the residual stream before attention or before the MLP, or `attn` or `mlp`, what the one or
the other adds to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechkit.graphs.engine.layers import Directions, Norm

Stage = Literal["pre", "mid", "attn", "mlp"]


@dataclass(frozen=True, eq=False)
class Reads:
    """What some targets at one position read."""

    layer: int
    """The layer of the stage; the number of layers for what reads the last residual stream."""
    stage: Stage
    """Where in the layer."""
    pos: int
    """The last position that is read."""
    start: int
    """The first position that is read."""
    g: Directions
    """Directions at positions from `start` on."""
    constants: Mapping[tuple[str, int], Float[Tensor, "target"]] = field(default_factory=dict)
    """What biases add to each target on its own side of the residual stream, by name and layer."""

    @property
    def n_targets(self) -> int:
        """How many targets read here."""
        return self.g.shape[1]

    @property
    def n_mlps(self) -> int:
        """MLPs whose output can be read: those of the layers below, and its own where `mlp` is the stage."""
        return self.layer + (self.stage == "mlp")

    @classmethod
    def joined(cls, reads: "Sequence[Reads]", order: Int[Tensor, "target"]) -> "Reads":
        """Reads of one stage and position as one, their targets in this order."""
        first = reads[0]
        constants = {name: torch.cat([one.constants[name] for one in reads])[order] for name in first.constants}
        g = torch.cat([one.g for one in reads], 1)[:, order]
        return cls(first.layer, first.stage, first.pos, first.start, g, constants)

    def only(self, chosen: slice) -> "Reads":
        """Some of the targets."""
        constants = {name: values[chosen] for name, values in self.constants.items()}
        return Reads(self.layer, self.stage, self.pos, self.start, self.g[:, chosen], constants)


@dataclass(frozen=True)
class MlpInput:
    """What a dictionary reads."""

    site: str
    """The site of its hook."""
    stage: Stage
    """The stage of the residual stream that its hook reads."""
    norm: Norm | None
    """The norm between, before its own weights."""


def mlp_input(basis) -> str:
    """The site that a basis reads. Raises ValueError for hooks that graphs do not follow."""
    names = {"ln2.hook_normalized": "ln2.normalized", "hook_mlp_in": "mlp_in"}
    names |= {f"hook_{name}": name for name in ("resid_mid", "resid_pre")}
    block, _, name = basis.hook_in.partition(f"blocks.{basis.layer}.")
    outs = [f"blocks.{basis.layer}.{out}" for out in ("hook_mlp_out", "mlp.hook_out")]
    if block or name not in names or basis.hook_out not in outs:
        raise ValueError(
            f"dictionary '{basis.name}' goes from {basis.hook_in} to {basis.hook_out}; graphs follow "
            "ln2.hook_normalized, hook_resid_mid or hook_resid_pre to hook_mlp_out or mlp.hook_out, in its own layer"
        )
    return f"L{basis.layer}.{names[name]}"


def input_of(frozen, basis) -> MlpInput:
    """What a basis reads in a frozen model. Raises ValueError for a hook that does not fire, or reads elsewhere."""
    site, layer = mlp_input(basis), frozen.layers[basis.layer]
    parallel = frozen.model.cfg.parallel_attn_mlp
    stage: Stage = "pre" if site.endswith("resid_pre") or parallel else "mid"
    if site.endswith("ln2.normalized") and layer.before_mlp is None:
        raise ValueError(
            f"dictionary '{basis.name}' reads {basis.hook_in}, which is no norm before the MLP in this model; "
            "use one that reads the residual stream"
        )
    norm = layer.before_mlp.plain if site.endswith("ln2.normalized") else None
    return MlpInput(site, stage, norm)


def require_fitting(model, bases: Sequence) -> None:
    """Raise ValueError where dictionaries are not one per layer, of the model's width, with hooks that it has."""
    layers = [basis.layer for basis in bases]
    if layers != list(range(model.cfg.n_layers)):
        raise ValueError(
            f"dictionaries are for layers {layers}; the model needs one for each of 0 to {model.cfg.n_layers - 1}"
        )
    for basis in bases:
        mlp_input(basis)
        width = len(basis.b_dec)
        if width != model.cfg.d_model:
            raise ValueError(
                f"dictionary '{basis.name}' writes {width} numbers; this model has d_model {model.cfg.d_model}"
            )
        if basis.b_dec.dtype != model.W_E.dtype:
            raise ValueError(
                f"dictionary '{basis.name}' is in {basis.b_dec.dtype}, this model in {model.W_E.dtype}; convert one"
            )
        if basis.hook_in not in model.hook_dict:
            raise ValueError(f"dictionary '{basis.name}' reads {basis.hook_in}, which is no hook of this model")
        if basis.reaches.stop > model.cfg.n_layers:
            raise ValueError(
                f"dictionary '{basis.name}' of layer {basis.layer} writes to layers up to {basis.reaches.stop - 1}; "
                f"this model's last is {model.cfg.n_layers - 1}"
            )


def at_position(
    frozen, layer: int, stage: Stage, pos: int, rows: Float[Tensor, "target d"], norm: Norm | None, constants
) -> Reads:
    """Targets that each read one direction at one position, through `norm` where there is one."""
    g = rows[None]
    return Reads(layer, stage, pos, pos, g if norm is None else norm.back(g, pos), constants)


def read_features(frozen, basis, pos: int, ids: Sequence[int], part: str = "") -> Reads:
    """What features of a basis read at one position."""
    where = input_of(frozen, basis)
    rows, added = basis.reads(list(ids), part)
    return at_position(frozen, basis.layer, where.stage, pos, rows, where.norm, {("b_enc", basis.layer): added})


def read_logits(frozen, pos: int, W: Float[Tensor, "target d"], b: Float[Tensor, "target"]) -> Reads:
    """What directions in the logits after `pos`, before any soft-cap, read: `W` over what the unembedding reads."""
    n_layers, norm = frozen.model.cfg.n_layers, frozen.final_norm
    constants = {("b_U", n_layers): b}
    if norm is not None and norm.b is not None:
        constants |= {("ln_final.b", n_layers): W @ norm.b}
    return at_position(frozen, n_layers, "pre", pos, W, norm, constants)


def read_projection(
    frozen, layer: int, kind: Literal["q", "k", "v"], head: int, pos: int, vectors: Float[Tensor, "target d_head"]
) -> Reads:
    """What directions in a head's query, key or value at one position read, before any norm or rotation of it.

    Under shortformer positions queries and keys also read the position embedding: the constant `position`.
    """
    attn, norm = frozen.model.blocks[layer].attn, frozen.layers[layer].before_attention
    W, b = (getattr(attn, f"{letter}_{kind.upper()}")[head].detach() for letter in ("W", "b"))
    rows = vectors @ W.T
    constants = {(f"b_{kind.upper()}", layer): vectors @ b}
    if norm is not None and norm.b is not None:
        constants |= {("ln1.b", layer): rows @ norm.b}
    if frozen.model.cfg.positional_embedding_type == "shortformer" and kind != "v":
        constants |= {("position", layer): rows @ frozen.values["pos_embed"][0, pos]}
    return at_position(frozen, layer, "pre", pos, rows, norm, constants)


def read_head(frozen, layer: int, head: int, pos: int, vectors: Float[Tensor, "target d_head"]) -> Reads:
    """What directions in a head's output z at one position read, through its attention pattern."""
    maps, attn = frozen.layers[layer], frozen.model.blocks[layer].attn
    width = pos + 1 if frozen.is_causal else frozen.n_positions
    g = maps.over_head(vectors[None], head, pos, width)
    kv = head // (maps.n_heads // maps.n_kv)
    mine = slice(kv * maps.d_head, (kv + 1) * maps.d_head)
    weights = maps.pattern[head, pos, :width].to(vectors.dtype)
    passing = torch.ones(width, 1, dtype=vectors.dtype, device=vectors.device)
    passing = passing if maps.passing is None else maps.passing[:width, mine]
    constants = {("b_V", layer): vectors @ (weights @ (passing * maps.b_V[mine]))}
    norm = maps.before_attention
    if norm is not None and norm.b is not None:
        constants |= {("ln1.b", layer): vectors @ (weights @ (passing * (norm.b @ attn.W_V[head].detach())))}
    if maps.clipped is not None:
        constants |= {("clipped_v", layer): vectors @ (weights @ maps.clipped[:width, mine])}
    return Reads(layer, "pre", pos, 0, g, constants)

"""The attribution matrix of one prompt: its sources, its targets, and rows on demand.

`A[t, s] = a_s * (what s writes) . J . (what t reads)`, J the Jacobian of the residual stream with attention
patterns, normalisation scales and MLP outputs held. The row of a target sums to its pre-activation exactly:
every parameter that adds to it has a column.

Source: Ameisen et al. 2025 (Circuit Tracing), section "Building an attribution graph"; here with position
embeddings, biases and BOS outputs as sources of their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.progress import progress
from mechkit.graphs.engine.blocks import Block
from mechkit.graphs.engine.first import FirstPosition
from mechkit.graphs.engine.frozen import FrozenModel, adds_positions
from mechkit.graphs.engine.layers import Norm
from mechkit.graphs.engine.reach import Column, Layout, Reach
from mechkit.graphs.engine.reading import MlpInput, Reads, input_of, read_features
from mechkit.graphs.engine.roots import Root
from mechkit.graphs.engine.written import Active, Beside, Written, active_features, written_by
from mechkit.graphs.nodes import EMBEDDING_LAYER, Node, token_text

Streams = Float[Tensor, "stream target source"]
"""Contributions of sources to targets, split by the last head on the path; they sum to the matrix."""

ROOM = 1 << 30
"""Bytes that one descent may take, unless told."""

_COPIES = 6
"""Copies of a target's directions that are held at once in a descent, with what goes through heads."""

_SHORT = 8
"""Dimensions for each position from which on a prompt is short: see `spread`."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """Nodes of one prompt and the means to compute rows of its matrix."""

    frozen: FrozenModel
    """The model, held at its values on this prompt."""
    bases: Sequence
    """One feature basis per layer (`mechkit.dictionaries.basis`); empty for a model without MLPs."""
    roots: Sequence[Root]
    """What the graph explains: logits, or other targets."""
    bos: bool = False
    """Whether position 0 is a BOS token, whose MLP outputs are one source per layer."""

    # --- nodes

    @cached_property
    def features(self) -> list[Node]:
        """Active features by layer, position and number, with activation and pre-activation."""
        return [node for basis, active in zip(self.bases, self.active, strict=True) for node in active.nodes(basis)]

    @property
    def root_nodes(self) -> list[Node]:
        """What the graph explains."""
        return [root.node for root in self.roots]

    @cached_property
    def targets(self) -> list[Node]:
        """Rows of the matrix: features (each part of a gated neuron), then roots."""
        return [*self.rows_of(range(len(self.features))), *self.root_nodes]

    def rows_of(self, features: Sequence[int]) -> list[Node]:
        """Rows of the features with these columns: one each, or one for each part of a gated neuron."""
        return [row for i in features for row in self._rows_of(self.features[i], i)]

    @cached_property
    def sources(self) -> list[Node]:
        """Columns of the matrix: features, errors, embeddings, BOS outputs, biases."""
        layers = range(len(self.bases))
        return [
            *self.features,
            *(Node("error", layer, pos, None, "error") for layer in layers for pos in self.mlp_positions),
            *self._embeddings(),
            *(Node("bos", layer, 0, None, "bos") for layer in layers if self.bos),
            *(Node("bias", layer, None, None, name) for name, layer in self.layout.biases),
        ]

    @property
    def mlp_positions(self) -> range:
        """Positions whose MLP outputs are explained by features: all but a BOS."""
        return range(1 if self.bos else 0, self.frozen.n_positions)

    @cached_property
    def layout(self) -> Layout:
        """Where columns of each kind start."""
        features, first, used = [], {}, 0
        for active in self.active:
            features.append([used + n for n in active.offsets])
            used += len(active.index)
        n_pos, n_bases = self.frozen.n_positions, range(len(self.bases))
        for layer in n_bases:
            first["error", layer], used = used, used + len(self.mlp_positions)
        for kind in ("token", "position") if adds_positions(self.frozen.model.cfg) else ("token",):
            first[kind,], used = used, used + n_pos
        for layer in n_bases if self.bos else ():
            first["bos", layer], used = used, used + 1
        biases = self._biases()
        first |= {("bias", *bias): used + i for i, bias in enumerate(biases)}
        return Layout(features, first, biases, used + len(biases), n_pos, self.mlp_positions.start)

    # --- values

    @cached_property
    def inputs(self) -> list[MlpInput]:
        """What each basis reads."""
        return [input_of(self.frozen, basis) for basis in self.bases]

    def mlp_in(self, basis) -> Float[Tensor, "pos d_model"]:
        """The values that a basis reads on this prompt."""
        return self.frozen.values[self.inputs[basis.layer].site][0].to(
            self.frozen.final.dtype
        )  # norms compute in float32

    @cached_property
    def active(self) -> list[Active]:
        """The active features of each layer."""
        return [active_features(basis, self.mlp_in(basis), self.mlp_positions.start) for basis in self.bases]

    def norm_after(self, basis) -> Norm | None:
        """The norm between what a basis writes and the residual stream."""
        return self.frozen.layers[basis.layer].after_mlp if basis.hook_out.endswith("mlp.hook_out") else None

    @cached_property
    def written(self) -> list[list[Written]]:
        """By layer, what the features of it and of lower layers write to its MLP's output."""
        found: list[list[Written]] = [[] for _ in self.bases]
        for basis, active, columns in zip(self.bases, self.active, self.layout.features, strict=True):
            for layer in basis.reaches:
                norm = self.norm_after(self.bases[layer])
                found[layer].append(written_by(basis, active, columns, layer, norm))
        return found

    @cached_property
    def mlp_constants(self) -> list[dict[str, Float[Tensor, "pos d_model"]]]:
        """By layer, what biases write to its MLP's output, by name."""
        found = []
        for basis in self.bases:
            norm, like = self.norm_after(basis), self.frozen.mlp_out(basis.layer)
            b_dec = basis.b_dec.expand_as(like)
            constants = {"b_dec": b_dec if norm is None else norm.forward(b_dec)}
            if norm is not None and norm.b is not None:
                constants[f"{self.frozen.layers[basis.layer].after_names['mlp']}.b"] = norm.bias(like)
            found.append({name: self._explained(values) for name, values in constants.items()})
        return found

    @cached_property
    def attention_constants(self) -> list[dict[str, Float[Tensor, "pos d_model"]]]:
        """By layer, what biases write through attention, by name."""
        like = self.frozen.values["embed"][0]
        return [layer.attention_constants(like) for layer in self.frozen.layers]

    def by_head(self, layer: int) -> Float[Tensor, "head pos d_model"]:
        """What the bias of the norm before attention writes through each head, where there is one."""
        maps, like = self.frozen.layers[layer], self.frozen.values["embed"][0]
        values = maps.norm_values(like)
        return like.new_zeros(maps.n_heads, *like.shape) if values is None else maps.attend_by_head(values)

    @cached_property
    def beside(self) -> list[dict[str, Beside]]:
        """By layer, what is written at its MLP's output and by its attention beside features."""
        found = []
        for layer, attention in enumerate(self.attention_constants):
            places: dict[str, dict[Column, Tensor]] = {
                "attention": {("bias", name, layer): written for name, written in attention.items()}
            }
            if self.bases:
                places["mlp"] = {("error", layer): self.errors[layer]}
                places["mlp"] |= {("bias", name, layer): vector for name, vector in self.mlp_constants[layer].items()}
            found.append({place: Beside.of(written) for place, written in places.items()})
        return found

    @property
    def is_short(self) -> bool:
        """Whether positions are few against d_model."""
        return _SHORT * self.frozen.n_positions <= self.frozen.model.cfg.d_model

    @cached_property
    def spread(self) -> dict[str, Float[Tensor, "pos d_model src"]]:
        """What each embedding comes to at every position after the first attention, by kind of embedding.

        Empty where positions are many against d_model: then it is cheaper to take directions down to embeddings.
        """
        frozen, kinds = self.frozen, {"token": "embed", "position": "pos_embed"}
        if not self.is_short:
            return {}
        spread = frozen.layers[0].spread
        return {kind: spread(frozen.values[site][0]) for kind, site in kinds.items() if (kind,) in self.layout.first}

    @cached_property
    def first(self) -> FirstPosition | None:
        """What a BOS at the first position comes to in later layers; None where there is none, and on long prompts."""
        return FirstPosition.of(self) if self.bos and self.frozen.is_causal and self.is_short else None

    @cached_property
    def errors(self) -> list[Float[Tensor, "pos d_model"]]:
        """What each layer's MLP writes beyond its dictionary's reconstruction; 0 at a BOS."""
        found = []
        for basis in self.bases:
            left = self.frozen.mlp_out(basis.layer) - sum(self.mlp_constants[basis.layer].values())
            for written in self.written[basis.layer]:
                left = left - written.total()
            if basis.W_skip is not None:
                norm, skip = self.norm_after(basis), self.mlp_in(basis) @ basis.W_skip.T
                left = left - (skip if norm is None else norm.forward(skip))
            found.append(self._explained(left))
        return found

    def writes(self, node: Node) -> dict[int, Float[Tensor, "d_model"]]:
        """What an active feature adds to the residual stream at its position, by layer."""
        basis, found = self.bases[node.layer], {}
        for layer in basis.reaches:
            norm, row = self.norm_after(self.bases[layer]), node.value * basis.writes([node.index or 0], layer)
            pos = node.pos or 0
            found[layer] = (row if norm is None else norm.at(row, norm.scale[pos : pos + 1]))[0]
        return found

    def _explained(self, values: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """Values with those at a BOS set to 0."""
        values = values.clone()
        values[: self.mlp_positions.start] = 0
        return values

    # --- the matrix

    def blocks(
        self, targets: Sequence[Node], *, heads: bool = False, room: int = ROOM, label: str = "attribution"
    ) -> Iterator[Block]:
        """Rows of the matrix for `targets`, those of one layer and position together, on the columns they reach.

        As many targets descend at once as `room` bytes hold.

        Each block's `rows` count in `targets`. With `heads` its values have one stream for paths on which no head comes
        last before the target, then one for each head by layer and number; they sum to the rows.
        Cost: about 4 d^2 l (p + 1) FLOPs for a target at layer l, position p (times the streams); no forward pass.
        """
        groups: dict[tuple, list[int]] = {}
        for i, target in enumerate(targets):
            groups.setdefault(self._group(target), []).append(i)
        for members in progress(list(groups.values()), label):
            yield from self._blocks([targets[i] for i in members], members, heads, room)

    def rows(self, targets: Sequence[Node], *, heads: bool = False) -> Streams:
        """The rows of `targets` with all columns, for small graphs."""
        cfg = self.frozen.model.cfg
        n_streams = 1 + cfg.n_layers * cfg.n_heads if heads else 1
        out = self.frozen.final.new_zeros(n_streams, len(targets), len(self.sources))
        for block in self.blocks(targets, heads=heads):
            out[:, block.rows[:, None], block.columns] = block.values if heads else block.values[None]
        return out

    def reach(self, reads: Reads) -> Reach:
        """The columns that targets can reach."""
        width = reads.pos + 1 if self.frozen.is_causal else self.frozen.n_positions
        return Reach.of(self.layout, reads.n_mlps, reads.layer, width)

    def contributions(
        self, reads: Reads, *, heads: bool = False, room: int = ROOM
    ) -> Iterator[tuple[slice, Reach, Tensor]]:
        """Contributions `[stream, target, column]` to what is read, as many targets at once as there is room for."""
        from mechkit.graphs.engine.push import push

        reach, cfg = self.reach(reads), self.frozen.model.cfg
        n_streams = 1 + reads.layer * cfg.n_heads if heads else 1
        size = reads.g.element_size() * n_streams
        each = size * (reach.width * (cfg.d_model + cfg.n_heads * cfg.d_head) * _COPIES // 2 + reach.n_columns)
        step = max(2, room // max(1, each) // 2 * 2)  # the two rows of a gated neuron stay together
        for start in range(0, reads.n_targets, step):
            chosen = slice(start, min(start + step, reads.n_targets))
            yield chosen, reach, push(self, reads.only(chosen), reach, heads=heads)

    def _blocks(self, targets: Sequence[Node], numbers: list[int], heads: bool, room: int) -> Iterator[Block]:
        first = targets[0]
        level = first.layer if first.kind == "feature" else self.frozen.model.cfg.n_layers + 1
        for chosen, reach, values in self.contributions(self._reads(targets), heads=heads, room=room):
            yield Block(torch.tensor(numbers[chosen]), reach, values if heads else values[0], level)

    def _group(self, target: Node) -> tuple:
        if target.kind == "feature" and target.root is None:
            return target.layer, target.pos
        return ("root", self.roots[target.root or 0].group)

    def _reads(self, targets: Sequence[Node]) -> Reads:
        first = targets[0]
        if first.root is not None:
            return Root.reads([self.roots[node.root or 0] for node in targets], self)
        parts = dict.fromkeys(node.part for node in targets)
        groups = {part: [i for i, node in enumerate(targets) if node.part == part] for part in parts}
        reads = [self._reads_part([targets[i] for i in group]) for group in groups.values()]
        back = torch.tensor([i for group in groups.values() for i in group]).argsort()
        return Reads.joined(reads, back)

    def _reads_part(self, targets: Sequence[Node]) -> Reads:
        first, ids = targets[0], [node.index or 0 for node in targets]
        return read_features(self.frozen, self.bases[first.layer], first.pos or 0, ids, first.part)

    # --- how the nodes are listed

    def _rows_of(self, node: Node, column: int) -> list[Node]:
        parts = self.bases[node.layer].parts
        if len(parts) == 1:
            return [node]
        active = self.active[node.layer]
        i = column - self.layout.features[node.layer][0]
        return [node.row(part, float(active.sums[j, i])) for j, part in enumerate(parts)]

    def _embeddings(self) -> list[Node]:
        model, ids = self.frozen.model, self.frozen.prompts.tokens[0].tolist()
        tokens = [Node("token", EMBEDDING_LAYER, pos, i, token_text(model, i)) for pos, i in enumerate(ids)]
        if not adds_positions(model.cfg):
            return tokens
        return tokens + [Node("position", EMBEDDING_LAYER, pos, pos, "position") for pos in range(len(ids))]

    def _biases(self) -> list[tuple[str, int]]:
        """Name and layer of every bias that adds to some target, by layer."""
        n_layers, own = self.frozen.model.cfg.n_layers, {}
        for root in self.roots:
            own |= dict.fromkeys(root.biases(self))
        found = []
        for layer in range(n_layers):
            found += [(name, layer) for name in self.attention_constants[layer]]
            found += [("b_enc", layer)] if self.bases else []
            found += [(name, layer) for name in (self.mlp_constants[layer] if self.bases else ())]
            found += [bias for bias in own if bias[1] == layer and bias not in found]
        return found + [bias for bias in own if bias[1] == n_layers]

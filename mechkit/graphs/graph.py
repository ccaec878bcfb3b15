r"""The attribution graph of one prompt: nodes, edges, influences, meanings and checks.

graph = trace(model, "35+59=")
graph.scores                       # replacement, completeness, agreement with interventions
graph.pathways().frame()           # what carries the answer, ranked
graph.matrix()[0].sum(), graph.preactivations[0]      # the same number
graph.save("graph.json"); graph.to_html("graph.html")
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechkit.core.result import Result
from mechkit.core.site import Edge
from mechkit.graphs.engine.attribution import Attribution
from mechkit.graphs.engine.blocks import Blocks
from mechkit.graphs.engine.influence import Kept, Matrix
from mechkit.graphs.meaning.named import Named
from mechkit.graphs.nodes import Node
from mechkit.graphs.truth.tested import Tested

if TYPE_CHECKING:
    import pandas as pd

    from mechkit.graphs.files.saved import SavedGraph


@dataclass(frozen=True)
class Meaning:
    """What a feature stands for."""

    label: str
    """In words."""
    group: str
    """Its class, such as `sum` or `ones-digit lookup`."""
    share: float
    """Share of the variance of its activity that the class explains, from 0 to 1."""
    of: str
    """What it is a function of, such as `last digits of both`."""


@dataclass(eq=False)
class AttributionGraph(Named, Tested):
    """The attribution graph of one prompt, with what is known of its nodes and how well it predicts."""

    attribution: Attribution
    """The engine: nodes, and rows of the matrix on demand."""
    weighted: Matrix
    """The matrix, its nodes, and the probabilities of its logits."""
    kept: Kept
    """What pruning keeps; saved files and pages show this part."""
    meta: Mapping
    """How it was made: model, weights, prompt, thresholds, versions."""
    rows: Blocks
    """The matrix with one row per pre-activation: that of `weighted`, or two rows for a gated neuron."""
    targets: Sequence[Node]
    """What the rows of the matrix are: features, then roots."""
    meanings: dict[str, Meaning] = field(default_factory=dict)
    """What features stand for, by node id."""
    plots: dict[str, Tensor] = field(default_factory=dict)
    """Activity over all operands `[a, b]`, by node id, for arithmetic prompts."""
    check: Any = None
    """Predicted against measured interventions, a `mechkit.graphs.truth.check.Check`, where they were made."""
    supernode_checks: list = field(default_factory=list)
    """What suppressing each supernode does (`SupernodeCheck`), where it was tried."""
    findings: list = field(default_factory=list)
    """What suppressing whole classes of features does on many prompts (`Finding`), where it was tried."""
    labels: dict[str, str] = field(default_factory=dict)
    """What the user calls nodes, by node id; see `label`."""
    indexed: dict[int, Any] = field(default_factory=dict)
    """The feature index of each layer's dictionary, where one was given; see `explain`."""
    edited: dict[str, list[Node]] | None = None
    """Supernodes as edited; None while they are automatic."""

    @property
    def nodes(self) -> list[Node]:
        """All nodes: sources, then roots."""
        return [*self.weighted.sources, *self.roots]

    @property
    def roots(self) -> list[Node]:
        """What the graph explains: logits, likeliest first, or the targets that were named."""
        return list(self.weighted.targets[self.weighted.n_features :])

    @property
    def logits(self) -> list[Node]:
        """The logits among the roots, or all roots where none is one; the first is called the answer."""
        return [node for node in self.roots if node.kind == "logit"] or self.roots

    @property
    def coverage(self) -> float:
        """Share of the influence on the roots that is followed down to inputs and errors."""
        return self.weighted.coverage

    @property
    def sources(self) -> list[Node]:
        """Columns of the matrix."""
        return list(self.weighted.sources)

    def matrix(self) -> Float[Tensor, "target source"]:
        """Signed contributions of sources to `targets`, unpruned: for small graphs, zeros and all (`rows` has them by
        blocks). A row sums to its target's `preactivations`; a gated neuron has two, gate and linear.

        Unit: that of the pre-activation; logits are measured from the mean logit unless `meta` says otherwise.
        """
        return self.rows.dense()

    @cached_property
    def probabilities(self) -> dict[str, float]:
        """The model's probability of each logit node, by node id."""
        all_of_them = self.attribution.frozen.capped_logits.softmax(-1)
        return {node.id: float(all_of_them[node.index]) for node in self.roots if node.kind == "logit"}

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {node.id: i for i, node in enumerate(self.weighted.sources)}

    def column_of(self, node: Node) -> int:
        """The column of a source."""
        return self._columns[node.id]

    @cached_property
    def preactivations(self) -> Float[Tensor, "target"]:
        """What each row of the matrix must sum to, computed by the model itself."""
        values = [node.preactivation for node in self.targets]
        return torch.tensor(values, dtype=self.rows.dtype, device=self.rows.device)

    @property
    def edges(self) -> Result:
        """The kept edges, largest influence first: rows sender -> receiver, scores their signed weights."""
        places, weights, _ = self.kept_edges
        edges = [Edge(self.weighted.sources[s].site, self.weighted.targets[t].site) for t, s in places.tolist()]
        return Result.of_edges(edges, weights[:, None], "pre-activation", self.meta)

    @cached_property
    def kept_edges(self) -> tuple[Int[Tensor, "edge 2"], Float[Tensor, "edge"], Float[Tensor, "edge"]]:
        """Kept edges, largest influence first: target and source numbers, signed weights, influence along each."""
        t, s = self.kept.places.T
        through, order = self.weighted.through().at(t, s).sort(descending=True, stable=True)
        return self.kept.places[order], self.weighted.rows.at(t, s)[order], through

    @cached_property
    def edge_heads(self) -> list:
        """The heads that carry each of `kept_edges`, as (name, signed share) pairs; None beyond a budget of FLOPs
        (`mechkit.graphs.engine.headed`)."""
        from mechkit.graphs.engine.headed import edge_heads

        return edge_heads(self)

    @property
    def kept_sources(self) -> list[int]:
        """Columns of the sources that pruning keeps."""
        return self.kept.nodes.nonzero()[:, 0].tolist()

    @property
    def scores(self) -> dict[str, float | None]:
        """Replacement and completeness, and the agreement of predicted with measured interventions.

        Agreement is the Spearman correlation over kept features with nothing frozen; None before a check. The first
        two are None on a model's own neurons, which leave nothing out.
        """
        of_neurons = all(basis.name == "neurons" for basis in self.attribution.bases)
        made = {"replacement": None, "completeness": None} if of_neurons else self.weighted.scores()
        return {**made, "intervention": None if self.check is None else self.check.agreement}

    def influences(self) -> Result:
        """Share of the answer through each source over all paths, from 0 to 1."""
        scores = self.weighted.influence[:, None]
        return Result.of_sites([node.site for node in self.weighted.sources], scores, "share of the answer", self.meta)

    def head_loadings(self, targets: Sequence[Node]) -> Float[Tensor, "stream target source"]:
        """Rows of the matrix split by the last head before the target; the streams sum to the rows.

        The first stream is "no head", then heads by layer and number. Cost: one descent per (layer, position).
        """
        return self.attribution.rows(targets, heads=True)

    def qk_attribution(self, site: str, n: int = 20) -> Any:
        """Why a head attends where it does: the `n` largest pairs of query and key sources behind one score, such as
        `L1.H2.attn_scores@5<-3`, and the rest as a remainder (`mechkit.graphs.engine.qk.QKAttribution`).

        Cost: one forward pass and two descents of d_head directions.
        """
        from mechkit.graphs.engine.qk import qk_attribution

        return qk_attribution(self.attribution, site, n)

    def pathways(self, n: int = 8) -> list:
        """The `n` pathways that carry most of the answer, each a `Pathway`: text, share, nodes. Print them."""
        from mechkit.graphs.meaning.pathways import pathways

        return pathways(self)[:n]

    def heads(self) -> Result:
        """Share of the answer's influence that each head, `L0.H1.z`, is the last to carry to a node."""
        from mechkit.core.site import Site
        from mechkit.graphs.meaning.pathways import heads

        shares = heads(self)
        values = torch.tensor(list(shares.values()))[:, None]
        return Result.of_sites(map(Site.parse, shares), values, "share of the answer", self.meta)

    def shown(self) -> "SavedGraph":
        """What files and pages show: the kept part, without the model. Cost: within a budget, heads of the edges."""
        from mechkit.graphs.files.export import graph_document
        from mechkit.graphs.files.saved import SavedGraph

        return SavedGraph(graph_document(self))

    @staticmethod
    def load(path: str | PathLike) -> "SavedGraph":
        """The graph of a JSON file: what `save` wrote, or circuit-tracer or Neuronpedia.

        Raises ValueError, naming the file, for one that is damaged or no graph.
        """
        from mechkit.graphs.files.saved import SavedGraph

        return SavedGraph.load(path)

    def frame(self) -> "pd.DataFrame":
        """One row per kept node: where it is, what it means, its share of the answer, its effects where checked."""
        return self.shown().frame()

    def save(self, path: str | PathLike) -> Path:
        """Write the kept part as JSON in Neuronpedia's graph schema; `load` reads it. Returns the path."""
        return self.shown().save(path)

    def to_html(self, path: str | PathLike) -> Path:
        """Write one self-contained page that shows the kept part and works with no network. Returns the path."""
        return self.shown().to_html(path)

    def to_png(self, path: str | PathLike) -> Path:
        """Write a picture of the strongest nodes by position and layer, with their edges. Returns the path."""
        return self.shown().to_png(path)

    def view(self, height: int = 860) -> Any:
        """The page as an object that a notebook shows in a frame of `height` pixels, with no network."""
        return self.shown().view(height)

    def __repr__(self) -> str:
        answer, kept = self.logits[0], len(self.kept_sources)
        sure = f" with probability {self.probabilities[answer.id]:.3f}" if answer.id in self.probabilities else ""
        scores = ", ".join(f"{name} {value:.2f}" for name, value in self.scores.items() if value is not None)
        return (
            f"AttributionGraph of {self.meta['prompt']!r}: {answer.name!r}{sure}\n"
            f"{len(self.nodes)} nodes, {kept} kept, {self.coverage:.1%} of the influence followed; {scores}"
        )

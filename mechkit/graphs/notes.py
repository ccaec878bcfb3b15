"""What is known of each kept feature beside its class: the tokens it promotes, where it fires, what it is called.

Promoted tokens come from the model's own weights (`promoted`); examples, labels and densities from a feature index
given as an argument (`indexed`).

    graph = trace(model, "the capital of France is", index=index)
    graph.notes["3_1709_5"].promoted[0], graph.notes["3_1709_5"].labels
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mechkit.graphs.indexed import Indexed, example_lists, labels_of
from mechkit.graphs.nodes import Node
from mechkit.graphs.promoted import promoted, written
from mechkit.graphs.received import received, tokens_named

N_EXAMPLES = 5
"""Examples kept of each feature."""


@dataclass(frozen=True)
class Notes:
    """What is known of one feature, in plain lists."""

    promoted: list[tuple[str, float]]
    """Tokens whose logits after its position it raises most on this prompt, directly: text, and effect in logits."""
    suppressed: list[tuple[str, float]]
    """The same for those that it lowers most, lowest first."""
    examples: list[tuple[list[str], list[float], int]] = field(default_factory=list)
    """Where it is strongest in a corpus: tokens, its activation on each, and which of them is the peak; from an index.
    """
    labels: list[tuple[str, str]] = field(default_factory=list)
    """What it was called and by whom, the user's own first; automatic ones say so in the source; from an index."""
    from_tokens: list[str] = field(default_factory=list)
    """Tokens of the prompt that make it active along kept edges, at most two; empty where none does for much of it."""
    to_tokens: list[str] = field(default_factory=list)
    """Promoted tokens that stand out from all others, at most three."""
    density: float | None = None
    """Share of the corpus's tokens on which it fires; None without an index."""


def notes_of(graph, nodes: Sequence[Node]) -> dict[str, Notes]:
    """Notes of features, by node id, with what `graph.indexed` knows of them.

    Cost: 2 d vocab FLOPs a feature, and a few reads of its index.
    """
    engine, reaching = graph.attribution, received(graph, nodes)
    told = promoted(engine, written(engine, nodes), [node.pos or 0 for node in nodes])
    of_feature: dict[tuple[int, int], dict] = {}
    found: dict[str, Notes] = {}
    for node, words, parts in zip(nodes, told, reaching, strict=True):
        key = node.layer, node.index or 0
        if key not in of_feature:
            of_feature[key] = _from_index(graph.indexed.get(node.layer), key[1])
        raised_by = tokens_named(graph, parts)
        found[node.id] = Notes(words.most, words.least, from_tokens=raised_by, to_tokens=words.named, **of_feature[key])
    return found


def in_words(from_tokens: Sequence[str], to_tokens: Sequence[str]) -> str:
    """What a feature reads and promotes, `France → Paris, French`; "" where neither is known."""
    read, said = ", ".join(from_tokens), ", ".join(to_tokens)
    if not said:
        return f"reading {read}" if read else ""
    return f"{read} → {said}" if read else f"promoting {said}"


def label_of(graph, node: Node) -> str | None:
    """A node in words: the user's, its class's, an index's, or what it reads and promotes; None if nothing is known."""
    meaning, own = graph.meanings.get(node.id), graph.labels.get(node.id)
    if own is not None or meaning is not None:
        return own if own is not None else meaning.label
    if node.kind != "feature" or node.id not in graph.notes:
        return None
    notes = graph.notes[node.id]
    return graph.index_label(node) or in_words(notes.from_tokens, notes.to_tokens) or None


def _from_index(index: Indexed | None, feature: int) -> dict:
    if index is None:
        return {}
    return {
        "examples": example_lists(index, feature, N_EXAMPLES),
        "labels": labels_of(index, feature),
        "density": float(index.density[feature]),
    }

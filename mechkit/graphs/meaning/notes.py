"""What is known of each kept feature beside its class: the tokens it promotes, where it fires, what it is called.

Promoted tokens come from the model's own weights (`promoted`); examples, labels and densities from a feature index
given as an argument (`indexed`).

    graph = trace(model, "the capital of France is", index=index)
    graph.notes["3_1709_5"].promoted[0], graph.notes["3_1709_5"].labels
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mechkit.core.progress import progress
from mechkit.graphs.meaning.indexed import AUTOMATIC, example_lists, labels_of
from mechkit.graphs.meaning.promoted import promoted, written
from mechkit.graphs.meaning.received import elsewhere, received, tokens_named
from mechkit.graphs.nodes import Node

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

    Cost: 2 d vocab FLOPs a feature, and about 5 ms to read its index where it has one.
    """
    engine, reaching, known = graph.attribution, received(graph, nodes), _known(graph, nodes)
    told = promoted(engine, written(engine, nodes), [node.pos or 0 for node in nodes])
    found: dict[str, Notes] = {}
    for node, words, parts in zip(nodes, told, reaching, strict=True):
        own, raised_by = known.get((node.layer, node.index or 0), {}), tokens_named(graph, parts)
        found[node.id] = Notes(words.most, words.least, from_tokens=raised_by, to_tokens=words.named, **own)
    return found


def _known(graph, nodes: Sequence[Node]) -> dict[tuple[int, int], dict]:
    """What indexes know of each feature, by layer and number."""
    labels = {layer: labels_of(index) for layer, index in graph.indexed.items()}
    places = dict.fromkeys((node.layer, node.index or 0) for node in nodes if node.layer in graph.indexed)
    return {
        (layer, feature): {
            "examples": example_lists(graph.indexed[layer], feature, N_EXAMPLES),
            "labels": labels[layer].get(feature, []),
            "density": float(graph.indexed[layer].density[feature]),
        }
        for layer, feature in (progress(list(places), "reading the index") if places else ())
    }


def in_words(from_tokens: Sequence[str], to_tokens: Sequence[str]) -> str:
    """What a feature reads and promotes, `France → Paris, French`; "" where neither is known."""
    read, said = ", ".join(from_tokens), ", ".join(to_tokens)
    if not said:
        return f"reading {read}" if read else ""
    return f"{read} → {said}" if read else f"promoting {said}"


def label_of(graph, node: Node) -> str | None:
    """A node in words: the user's, its class's, an index's, or what it reads and promotes; None if nothing is known.

    What a program called it stands behind what it reads and promotes.
    """
    meaning, own = graph.meanings.get(node.id), graph.labels.get(node.id)
    if own is not None or meaning is not None:
        return own if own is not None else meaning.label
    if node.kind != "feature" or node.id not in graph.notes:
        return None
    notes = graph.notes[node.id]
    text, source = notes.labels[0] if notes.labels else ("", "")
    words = in_words(elsewhere(graph, node, notes.from_tokens), notes.to_tokens)
    if text and not source.endswith(AUTOMATIC):
        return text
    return "; ".join(one for one in (words, text) if one) or None

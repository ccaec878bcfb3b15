"""Seeded documents of attribution graphs, as pages show them: small, large, hostile."""

import numpy as np

from mechkit.viz.heatmap_png import grey_png

EVIL = (
    "</script><img src=x onerror=alert(1)>",
    "<b>x</b>",
    "<!--<script>",
    "</script x=",
    "{{script}} & ' \" \u2028 \\u003c",
)
LABELS = {
    "sum": ["sum is 94", "sum is near 90", "sum is 80 to 99", "sum is above 120"],
    "ones-digit lookup": ["ones digits 5 and 9", "sum's last digit is 4", "ones digits 5 or 6 with 8 or 9"],
    "magnitude": ["both operands small", "first operand 30 to 40, second 50 to 60", "sum of tens is 8"],
    "operand": ["first operand is 35", "second operand ends in 9"],
    "modular": ["sum mod 5 is 4", "sum is even"],
    "other": ["mostly active", "no simple rule"],
}
SMALL = {"tokens": ["35", "+", "59", "="], "n_layers": 2, "n_features": 92, "n_edges": 800, "n_biases": 5}
LARGE = {"n_layers": 6, "n_features": 720, "n_edges": 7000, "n_biases": 12}
WORDS = "The quick brown fox  jumps over the lazy dog near\n the Golden Gate Bridge while a counter reaches 59"


def document_of(payload: dict) -> dict:
    """The document of a plain list of nodes and edges."""
    nodes = payload["nodes"]
    return {
        "metadata": {
            "slug": "made-up",
            "scan": payload.get("model", "model"),
            "prompt_tokens": payload["tokens"],
            "prompt": payload["title"],
        },
        "qParams": {"pinnedIds": [], "supernodes": _supernodes(nodes), "linkType": "both", "clickedId": ""},
        "nodes": [_json_node(node) for node in nodes],
        "links": [{name: edge[name] for name in ("source", "target", "weight")} for edge in payload["edges"]],
        "mechkit": {
            "n_layers": payload["n_layers"],
            "scores": payload.get("scores", {}),
            "made": payload.get("made", {}),
            "nodes": {node["id"]: _about(node) for node in nodes},
            "edges": {
                "heads": [edge.get("heads") for edge in payload["edges"]],
                "influence": [abs(edge["weight"]) for edge in payload["edges"]],
            },
            **{name: payload[name] for name in ("pathways", "tables", "operands") if name in payload},
        },
    }


def _supernodes(nodes: list[dict]) -> list[list[str]]:
    names = dict.fromkeys(node["supernode"] for node in nodes if node.get("supernode"))
    return [[name, *(node["id"] for node in nodes if node.get("supernode") == name)] for name in names]


def _json_node(node: dict) -> dict:
    is_top = node["kind"] == "logit"
    return {
        "node_id": node["id"],
        "feature": -1,
        "layer": "E" if node["layer"] < 0 else str(node["layer"] + is_top),
        "ctx_idx": node["pos"] or 0,
        "feature_type": "logit" if is_top else "cross layer transcoder",
        "jsNodeId": f"{node['id']}-0",
        "clerp": str(node.get("label", node["id"])),
        "activation": node.get("activation"),
        "token_prob": node.get("probability"),
    }


def _about(node: dict) -> dict:
    names = ("kind", "layer", "pos", "influence", "class", "class_share", "check", "plot", "notes")
    about = {name: node[name] for name in names if node.get(name) is not None or name == "pos"}
    return about | {"name": node.get("label", node["id"]), "site": node.get("text")}


def small_payload(seed: int = 0) -> dict:
    """A page like the one of `35+59=`: 4 tokens, 2 layers, about 120 nodes, 800 edges, every part filled."""
    payload = make_payload("35+59=", seed=seed, **SMALL)
    return document_of(payload | _everything_else(payload["nodes"]))


def large_payload(seed: int = 1) -> dict:
    """24 tokens, 6 layers, about 900 nodes, 7,000 edges; no operands, no pathways, no tables."""
    tokens = [word if at == 0 else f" {word}" for at, word in enumerate(WORDS.split(" "))]
    tokens = [*tokens, " and", " then", " stops", ".", "<|endoftext|>"][:24]
    return document_of(make_payload(WORDS, tokens=tokens, seed=seed, plots=False, **LARGE))


def evil_payload() -> dict:
    """The small page with markup in every place where a text can be."""
    document = small_payload(seed=2)
    document["metadata"] = {"slug": EVIL[0], "scan": EVIL[0], "prompt": EVIL[0], "prompt_tokens": list(EVIL)}
    for at, node in enumerate(document["nodes"]):
        node["clerp"] = EVIL[at % len(EVIL)]
    more = document["mechkit"]
    for at, about in enumerate(more["nodes"].values()):
        about["name"] = EVIL[at % len(EVIL)]
        if about.get("class") == "other":
            about["class"] = EVIL[0]
        if about["kind"] == "feature":
            about["notes"] = evil_notes()
    groups = document["qParams"]["supernodes"]
    document["qParams"]["supernodes"] = [[f"{EVIL[1]}{at}", *members] for at, (_, *members) in enumerate(groups)]
    document["qParams"]["pinnedIds"] = [node["node_id"] for node in document["nodes"][:40]]
    for item in more["pathways"]:
        item["text"] = EVIL[0]
    more["scores"] = {EVIL[0]: 0.5}
    more["tables"] = [{"title": EVIL[0], "note": EVIL[1], "columns": [EVIL[0], EVIL[1]], "rows": [[EVIL[0], EVIL[1]]]}]
    more["made"] = {EVIL[0]: EVIL[1]}
    more["edges"]["heads"] = [[[EVIL[0], 0.9]] for _ in document["links"]]
    return document


def evil_notes() -> dict:
    """Notes with markup in every text."""
    return {
        "promoted": [[text, 1.0] for text in EVIL],
        "suppressed": [[EVIL[0], -1.0]],
        "examples": [[list(EVIL), [0.0, 1.0, 0.5, 0.2, 0.1], 1]],
        "labels": [[EVIL[0], EVIL[1]]],
    }


def crowded_payload(n_cell: int = 80) -> dict:
    """One cell with `n_cell` nodes beside thirty tokens with a node each."""
    tokens = [f"token{at}" for at in range(30)]
    rng = np.random.default_rng(3)
    nodes = [_node(f"f{at}", "feature", 0, 17, at, rng) for at in range(n_cell)]
    nodes += [_node(f"t{at}", "token", -1, at, at, rng) for at in range(30)]
    edges = [{"source": f"t{at % 18}", "target": f"f{at}", "weight": float(rng.normal())} for at in range(n_cell)]
    return document_of({"title": "crowded", "tokens": tokens, "n_layers": 1, "nodes": nodes, "edges": edges})


def bare_payload() -> dict:
    """Only the keys that must be there, with a bias that feeds a feature of its own layer."""
    nodes = [
        {"id": "t", "kind": "token", "layer": -1, "pos": 0},
        {"id": "b", "kind": "bias", "layer": 0, "pos": None},
        {"id": "f", "kind": "feature", "layer": 0, "pos": 0},
    ]
    edges = [{"source": name, "target": "f", "weight": weight} for name, weight in (("t", 0.0), ("b", -1.0))]
    return document_of({"title": "x", "tokens": ["x"], "n_layers": 1, "nodes": nodes, "edges": edges})


def make_payload(title, tokens, n_layers, n_features, n_edges, n_biases, seed, plots=True) -> dict:
    rng = np.random.default_rng(seed)
    nodes = _fixed_nodes(tokens, n_layers, n_biases, rng)
    for at in range(n_features):
        layer = int(rng.integers(n_layers))
        pos = int(min(len(tokens) - 1, len(tokens) * rng.power(2.2)))
        node = _node(f"L{layer}.mlp[transcoder]#{at}@{pos}", "feature", layer, pos, at, rng)
        node["plot"] = _plot(node["class"], rng) if plots and pos == len(tokens) - 1 else None
        node["check"] = _check(rng) if rng.random() < 0.8 else None
        nodes.append(node)
    total = sum(node["influence"] for node in nodes)
    for node in nodes:
        node["influence"] /= total
    return {
        "title": title,
        "tokens": tokens,
        "n_layers": n_layers,
        "nodes": nodes,
        "edges": _edges(nodes, n_edges, rng),
    }


def _fixed_nodes(tokens, n_layers, n_biases, rng) -> list[dict]:
    nodes = []
    last = len(tokens) - 1
    for pos, token in enumerate(tokens):
        nodes.append(_node(f"embed@{pos}", "token", -1, pos, 0, rng) | {"label": token})
        nodes.append(_node(f"pos_embed@{pos}", "position", -1, pos, 0, rng) | {"label": f"position {pos}"})
        for layer in range(n_layers):
            nodes.append(_node(f"L{layer}.error@{pos}", "error", layer, pos, 0, rng) | {"label": "not explained"})
    nodes += [_node(f"L{layer}.bos", "bos", layer, 0, 0, rng) | {"label": "MLP output"} for layer in range(n_layers)]
    for at in range(n_biases):
        layer = at % n_layers
        nodes.append(_node(f"bias{at}", "bias", layer, None, 0, rng) | {"label": f"bias {at} of layer {layer}"})
    for at, answer in enumerate(["94", "84", "95"]):
        nodes.append(_node(f"logit{at}", "logit", n_layers, last, 0, rng) | {"label": answer})
    return nodes


def _node(name: str, kind: str, layer: int, pos: int | None, at: int, rng) -> dict:
    label = list(LABELS)[int(rng.integers(len(LABELS)))]
    isfeature = kind == "feature"
    return {
        "id": name,
        "kind": kind,
        "layer": layer,
        "pos": pos,
        "label": LABELS[label][at % len(LABELS[label])] if isfeature else name,
        "class": label if isfeature else None,
        "supernode": LABELS[label][at % len(LABELS[label])] if isfeature else None,
        "activation": float(rng.gamma(1.5)) if isfeature else None,
        "influence": float(rng.pareto(1.6) + 0.02),
        "class_share": float(rng.uniform(0.8, 1)) if isfeature else None,
        "plot": None,
        "check": None,
        "text": None,
    }


def _plot(kind: str, rng) -> dict:
    a, b = np.mgrid[:100, :100]
    patterns = {
        "sum": np.exp(-((a + b - 94) ** 2) / 60),
        "ones-digit lookup": ((a % 10 == 5) & (b % 10 == 9)) * 2.5,
        "magnitude": np.exp(-((a - 36) ** 2 + (b - 58) ** 2) / 300),
        "operand": (a == 35) * 1.0 + 0.1 * (a % 10 == 5),
        "modular": ((a + b) % 5 == 4) * 1.2,
    }
    values = patterns.get(kind, np.full((100, 100), 0.5)) * rng.uniform(0.5, 4)
    png, peak = grey_png(np.maximum(values + rng.normal(0, 0.03, values.shape), 0))
    return {"png": png, "max": peak}


def _check(rng) -> dict:
    predicted = float(rng.normal(-0.3, 0.7))
    return {
        "direct": predicted * 0.6,
        "predicted": predicted,
        "measured": predicted + float(rng.normal(0, 0.1)),
        "frozen": predicted + float(rng.normal(0, 0.03)),
    }


def _edges(nodes: list[dict], n_edges: int, rng) -> list[dict]:
    """Distinct pairs that go up the layers and never back to an earlier position."""
    layers = np.array([node["layer"] for node in nodes])
    places = np.array([-1 if node["pos"] is None else node["pos"] for node in nodes])
    found: dict[tuple[int, int], float] = {}
    while len(found) < n_edges:
        source, target = rng.integers(len(nodes), size=2)
        if layers[source] < layers[target] and places[source] <= places[target]:
            found[int(source), int(target)] = float(rng.normal() * rng.pareto(2))
    return [{"source": nodes[s]["id"], "target": nodes[t]["id"], "weight": w} for (s, t), w in found.items()]


def _everything_else(nodes: list[dict]) -> dict:
    paths = [
        ("35 → (L0 head 2) → ones digits 5 and 9 → sum ends in 4 → 94", 0.31, ["embed@0", 0, 4, "logit0"]),
        ("35, 59 → magnitude of both → sum is near 90 → 94", 0.24, ["embed@0", "embed@2", 1, 5, "logit0"]),
        ("59 → ones digit → 94", 0.08, ["embed@2", "logit0"]),
    ]
    names = _last_features(nodes)
    return {
        "model": "addition",
        "scores": {"replacement": 0.91, "completeness": 0.96, "intervention": 0.88},
        "operands": {"names": ["a", "b"], "values": [35, 59], "size": 100},
        "pathways": [
            {"text": text, "share": share, "nodes": [names[n] if isinstance(n, int) else n for n in ids]}
            for text, share, ids in paths
        ],
        "tables": [
            {
                "title": "Two pathways?",
                "note": "Classes of features suppressed on 200 sums.",
                "columns": ["suppress", "last digit changed", "size changed"],
                "rows": [["ones-digit features", "183", "12"], ["magnitude features", "21", "160"]],
            },
            {
                "title": "Is the graph true?",
                "columns": ["Level", "Spearman", "Sign agreement", "Control Spearman"],
                "rows": [
                    ["all frozen", "1.000", "100 %", "0.02"],
                    ["attention and norms frozen", "0.97", "96 %", "0.03"],
                    ["nothing frozen", "0.88", "91 %", "0.01"],
                ],
            },
        ],
        "made": {"mechkit": "0.1.0", "model weights sha256": "3f" * 32, "date": "2026-11-21"},
    }


def _last_features(nodes: list[dict]) -> list[str]:
    """Four features of layer 0 and four of layer 1, at the last position."""
    last = [node for node in nodes if node["kind"] == "feature" and node["pos"] == 3]
    low, high = ([node["id"] for node in last if node["layer"] == layer] for layer in (0, 1))
    return [*low[:4], *high[:4]]

"""mechkit: from a prompt to a mechanism that has been tested.

    import mechkit as mk
    model = mk.load("addition")                # a HookedTransformer, offline
    graph = mk.trace(model, "35+59=")          # its attribution graph, checked by intervention
    graph.scores, graph.pathways()

Names are loaded when first used: `import mechkit` imports neither torch nor transformer_lens.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "mechkit.core.interventions": ("Add", "Intervention", "Mean", "Noise", "ProjectOut", "Replace", "Scale", "Zero"),
    "mechkit.core.metrics": ("Metric", "accuracy", "kl", "logit_diff", "logprob", "loss", "prob"),
    "mechkit.core.places": ("expand",),
    "mechkit.core.prompts": ("Pair", "Prompts"),
    "mechkit.core.result": ("Grid", "Result"),
    "mechkit.core.site": ("Edge", "Site"),
    "mechkit.core.sweep": ("Activations", "Sweep", "activations", "sweep"),
    "mechkit.graphs.graph": ("AttributionGraph",),
    "mechkit.graphs.trace": ("trace",),
    "mechkit.zoo.loading": ("load",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names} | {"tasks": "mechkit.zoo.tasks"}

__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"mechkit has no '{name}'; it has {', '.join(sorted(_HOME))}")
    module = import_module(_HOME[name])
    value = module if name == "tasks" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

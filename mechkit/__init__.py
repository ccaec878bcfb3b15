"""mechkit: from a prompt to a mechanism that has been tested.

    import mechkit as mk
    model = mk.load("addition")                # a HookedTransformer, offline
    graph = mk.trace(model, "35+59=")          # its attribution graph, checked by intervention
    graph.scores, graph.pathways()

Names are loaded when first used: `import mechkit` imports neither torch nor transformer_lens.
"""

from mechkit.core.lazy import lazily

__version__ = "0.1.0"

_HOMES = {
    "core.engine.plan": ("Plan", "plan"),
    "core.interventions": ("Add", "Intervention", "Mean", "Noise", "ProjectOut", "Replace", "Scale", "Zero"),
    "core.metrics": (
        *("Metric", "accuracy", "kl", "logit", "logit_diff", "logit_margin", "logprob", "loss"),
        *("prob", "prob_diff", "span_loss"),
    ),
    "core.places": ("expand",),
    "core.prompts": ("Pair", "Prompts"),
    "core.result": ("Grid", "Result"),
    "core.site": ("Edge", "Site"),
    "core.sweep": ("Activations", "Sweep", "activations", "sweep"),
    "features.index": ("FeatureIndex",),
    "features.quality": ("sae_quality",),
    "features.scanning": ("scan",),
    "graphs.graph": ("AttributionGraph",),
    "graphs.sets.graph_set": ("GraphSet",),
    "graphs.many": ("trace_many",),
    "graphs.trace": ("trace",),
    "patching.activation": ("patch",),
    "patching.attribution": ("attribute",),
    "patching.paths": ("path_patch",),
    "superposition.measure": ("measure_superposition",),
    "superposition.measured": ("Superposition",),
    "superposition.model": ("ModelSuperposition", "measure_model"),
    "zoo.loading": ("load",),
}

__getattr__, __dir__, __all__ = lazily(
    __name__, {name: home for home, names in _HOMES.items() for name in names} | {"tasks": "zoo.tasks"}
)

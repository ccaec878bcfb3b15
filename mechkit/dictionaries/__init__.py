"""Feature bases: transcoders and SAEs from disk, a model's own neurons, and how they are trained and scored.

>>> from mechkit.dictionaries import neurons, transcoders_for
"""

from mechkit.core.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "Basis": "basis",
        "CrossLayerTranscoder": "cross_layer",
        "Fidelity": "on_text",
        "GatedNeurons": "mlp_neurons",
        "Plan": "sae_training",
        "Scores": "scores",
        "Transcoder": "transcoder",
        "fidelity": "on_text",
        "load_sae": "saes",
        "load_transcoders": "loading",
        "measure": "scores",
        "neurons": "mlp_neurons",
        "read_rows": "on_text",
        "saes_for": "saes",
        "sample_rows": "training",
        "train_mlp_transcoder": "sae_training",
        "train_sae": "sae_training",
        "train_transcoder": "training",
        "transcoders_for": "loading",
    },
)

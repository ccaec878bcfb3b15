"""Toy models of superposition: thousands of small instances trained as one batched tensor.

>>> from mechkit.superposition import toy
>>> pentagon = toy.train(toy.instances(5, 2, probability=0.05), toy.Exact(4), n_steps=300, learning_rate=0.05)
>>> pentagon.W.shape                        # [instance, hidden, feature]
torch.Size([1, 2, 5])
"""

from mechkit.core.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "Attacks": "adversarial",
        "Capacity": "storage",
        "Exact": "data",
        "FalseReadings": "facts",
        "Finite": "data",
        "KINDS": "toys",
        "Lookup": "facts",
        "Memorised": "memorising",
        "OUTCOMES": "theory",
        "PhaseDiagram": "phase",
        "Samples": "data",
        "Toys": "toys",
        "Trained": "trained",
        "Weights": "weights",
        "and_table": "facts",
        "antipodal": "theory",
        "attacks": "adversarial",
        "by_sparsity": "sparsity",
        "capacity": "storage",
        "excess": "facts",
        "expected_loss": "training",
        "false_readings": "facts",
        "hand_set": "facts",
        "instances": "toys",
        "left_out": "theory",
        "linear_loss": "theory",
        "linear_optimum": "theory",
        "memorise": "memorising",
        "one_active_loss": "theory",
        "phase_diagram": "phase",
        "phase_losses": "theory",
        "sampled_loss": "training",
        "sparse_samples": "memorising",
        "train": "training",
    },
)

"""Features that are known: an SAE trained on SAELens's synthetic data, and what lookup makes of tokens built from them.

The model's embeddings are sums of known feature vectors, so that the features of every token are known. A latent stands
for a known feature where their directions have a cosine of at least 0.9, a threshold fixed before anything was run.
"""

import numpy as np
import pytest
import torch

from mechkit.features import FeatureIndex, scan

SPARSE = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # SAELens's TopK multiplies sparse matrices
FOUND = 0.9
"""Cosine from which on a latent stands for a known feature."""


def known_world(n_features, d, n_tokens, mean_active=2.0):
    """SAELens's dictionary of feature vectors, its generator, which features each token has, and a model of them."""
    from sae_lens.synthetic import ActivationGenerator, FeatureDictionary
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    vectors = FeatureDictionary(n_features, d, seed=0)
    draw = ActivationGenerator(n_features, mean_active / n_features, std_firing_magnitudes=0.2)
    settings = {
        "n_layers": 1, "d_model": d, "n_heads": 1, "d_head": 1, "n_ctx": 32, "d_vocab": n_tokens, "attn_only": True,
        "normalization_type": None, "init_weights": False, "device": "cpu", "seed": 0,
    }  # fmt: skip
    model = HookedTransformer(HookedTransformerConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.zero_()
        active = draw.sample(n_tokens)
        model.W_E.data = vectors(active)
    return vectors, draw, active > 0, model.eval()


def trained(vectors, draw, d_sae, k, samples, folder):
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.synthetic import train_toy_sae

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=vectors.hidden_dim, d_sae=d_sae, k=k))
    train_toy_sae(sae, vectors, draw, training_samples=samples, lr=1e-2, lr_decay_steps=samples // 2048)
    sae.cfg.metadata.hook_name = "hook_embed"
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder).eval()


def shuffled(sae):
    """The same SAE with the numbers of every weight matrix in another order."""
    from copy import deepcopy

    other = deepcopy(sae)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in (other.W_enc, other.W_dec):
            order = torch.randperm(weights.numel(), generator=generator)
            weights.data = weights.flatten()[order].reshape(weights.shape)
    return other


def shares_found(index, vectors, has):
    """Of the known features, those that `similar` finds; of those that tokens have, those that `lookup` finds."""
    nearest = [index.similar(vector, 1).rows.iloc[0] for vector in vectors.feature_vectors.detach()]
    latent = {known: int(row["feature"]) for known, row in enumerate(nearest) if row["cosine"] >= FOUND}
    asked, met = 0, 0
    for first in range(0, 400, 20):
        looked = index.lookup(list(range(first, first + 20)))
        for pos in range(20):
            here = set(looked.at(pos).rows["feature"])
            known = np.flatnonzero(has[first + pos])
            asked, met = asked + len(known), met + sum(latent.get(one, -1) in here for one in known.tolist())
    return len(latent) / len(nearest), met / asked


def both_shares(world, d_sae, k, samples, folder):
    """The shares for the trained SAE, and for the same one shuffled."""
    vectors, draw, has, model = world
    rows = np.random.default_rng(0).integers(0, len(has), (200, 20))
    sae, found = trained(vectors, draw, d_sae, k, samples, folder / "sae"), []
    for name, one in (("trained", sae), ("shuffled", shuffled(sae))):
        made = scan(model, {name: one}, torch.from_numpy(rows), folder / name, top=4, sample=8)
        found.append(shares_found(FeatureIndex.open(made.folder, model=model), vectors, has.numpy()))
    return found


@SPARSE
def test_lookup_finds_the_known_features_and_none_in_a_shuffled_sae(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole, control = both_shares(known_world(32, 24, 600), 48, 2, 600_000, tmp_path)
    assert whole[0] >= 0.9
    assert whole[1] >= 0.8
    assert max(control) <= 0.05


@SPARSE
@pytest.mark.slow
def test_lookup_finds_most_known_features_of_a_larger_dictionary(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole, control = both_shares(known_world(256, 96, 4000, 4.0), 384, 4, 2_000_000, tmp_path)
    assert whole[0] >= 0.8
    assert whole[1] >= 0.75
    assert max(control) <= 0.05

"""Features of dictionaries as places to patch."""

from types import SimpleNamespace

import pytest
import torch

import mechkit as mk
from mechkit.dictionaries import Transcoder, neurons
from tests.patching import brute
from tests.patching.test_patch import CLOSE, PAIR, RAGGED


class Sae:
    """A ReLU autoencoder with weights of its own, which rebuilds `x` badly."""

    def __init__(self, d_in, n_features=7, seed=0, **about):
        draw = torch.Generator().manual_seed(seed)
        self.W_enc = torch.randn(d_in, n_features, generator=draw)
        self.W_dec = torch.randn(n_features, d_in, generator=draw)
        self.cfg = SimpleNamespace(metadata=SimpleNamespace(**about), normalize_activations="none")

    def encode(self, x):
        return torch.relu(x.flatten(-2) @ self.W_enc if x.shape[-1] != len(self.W_enc) else x @ self.W_enc)


SAE = Sae(16)


def set_features(dictionary, indices, site, prompts, i, wanted):
    """A hook that gives features of prompt `i` their `wanted` activations, by the definition."""
    place = brute.spot(site.at(basis=None, index=None), prompts, i)

    def hook(x, hook):
        x = x.clone()
        old = dictionary.encode(x[0][place])
        for index in indices:
            step = (wanted[..., index] - old[..., index])[..., None] * dictionary.W_dec[index]
            x[0][place] += step.reshape(x[0][place].shape)
        return x

    return site.at(basis=None, index=None).hook, hook


def by_hand(model, pair, rows, dictionary, wanted_of=None):
    """Changes `[row, prompt]` when features of the corrupt run take their clean (or `wanted_of`) activations."""
    scores = torch.empty(len(rows), len(pair))
    for i in range(len(pair)):
        values = brute.cached(model, pair.clean, i)[1]
        before = brute.score(model, pair.corrupt, i, mk.logit_diff)
        for r, row in enumerate(rows):
            hooks = []
            for site, indices in row:
                bare = site.at(basis=None, index=None)
                wanted = dictionary.encode(values[bare.hook][brute.spot(bare, pair.clean, i)])
                hooks.append(set_features(dictionary, indices, site, pair.corrupt, i, wanted))
            scores[r, i] = brute.score(model, pair.corrupt, i, mk.logit_diff, hooks) - before
    return scores


@pytest.mark.parametrize("pair", [PAIR, RAGGED], ids=["one length", "several lengths"])
@pytest.mark.parametrize("place", ["L1.resid_pre[sae]@-1", "L0.resid_post[sae]@s", "L1.attn_out[sae]"])
def test_a_feature_moves_x_by_its_change_times_its_decoder_row(model, place, pair):
    found = mk.patch(model, pair, f"{place}#*", mk.logit_diff, dictionaries={"sae": SAE})
    assert found.sites == [mk.Site.parse(f"{place}#{i}") for i in range(7)]
    rows = [[(site, [site.index])] for site in found.sites]
    torch.testing.assert_close(found.scores, by_hand(model, pair, rows, SAE), **CLOSE)
    assert found.scores.abs().max() > 0.05


def test_a_dictionary_without_index_is_all_its_features_and_leaves_the_error(model):
    whole = mk.patch(model, PAIR, "L1.resid_pre[sae]@-1", mk.logit_diff, dictionaries={"sae": SAE})
    rows = [[(whole.sites[0], range(7))]]
    torch.testing.assert_close(whole.scores, by_hand(model, PAIR, rows, SAE), **CLOSE)
    together = mk.patch(model, PAIR, [["L1.resid_pre[sae]@-1#*"]], mk.logit_diff, dictionaries={"sae": SAE})
    torch.testing.assert_close(together.scores, whole.scores, **CLOSE)
    no_error = mk.patch(model, PAIR, "L1.resid_pre@-1", mk.logit_diff)
    assert not torch.allclose(no_error.scores, whole.scores, atol=1e-2)


def test_features_in_a_group_are_set_in_the_run_itself(model):
    """Earlier patches of the row count: the feature ends at its clean activation, and is not moved twice."""
    row = ["L0.resid_pre[sae]@-1#1", "L1.resid_pre[sae]@-1#2", "L1.resid_pre[sae]@-1#5"]
    found = mk.patch(model, PAIR, [row], mk.logit_diff, dictionaries={"sae": SAE})
    sites = [mk.Site.parse(text) for text in row]
    rows = [[(sites[0], [1]), (sites[1], [2, 5])]]
    torch.testing.assert_close(found.scores, by_hand(model, PAIR, rows, SAE), **CLOSE)
    full = mk.patch(model, PAIR, [["L1.resid_pre", "L1.resid_pre[sae]@s#3"]], mk.logit_diff, dictionaries={"sae": SAE})
    torch.testing.assert_close(full.scores[0], full.gap, **CLOSE)


def test_features_are_ablated_to_zero_their_mean_or_another_prompts(model):
    texts = ["L1.resid_pre[sae]@-1#1", "L1.resid_pre[sae]@-1#4"]
    clean = mk.Pair(PAIR.clean, PAIR.clean)
    at = mk.Site.parse("L1.resid_pre@-1")
    acts = torch.stack(
        [SAE.encode(brute.cached(model, PAIR.clean, i)[1][at.hook][brute.spot(at, PAIR.clean, i)]) for i in range(3)]
    )
    for ablate, wanted in (("zero", torch.zeros(3, 7)), ("mean", acts.mean(0).expand(3, -1))):
        found = mk.patch(model, clean, texts, mk.logit_diff, ablate=ablate, dictionaries={"sae": SAE})
        for site, scores in zip(found.sites, found.scores, strict=True):
            for i in range(3):
                hooks = [set_features(SAE, [site.index], site, PAIR.clean, i, wanted[i])]
                change = brute.score(model, PAIR.clean, i, mk.logit_diff, hooks)
                change -= brute.score(model, PAIR.clean, i, mk.logit_diff)
                torch.testing.assert_close(scores[i], change, **CLOSE)
    group = mk.patch(model, clean, [texts], mk.logit_diff, ablate="zero", dictionaries={"sae": SAE})
    assert group.scores.abs().max() > 0.05
    drawn = mk.patch(model, clean, texts, mk.logit_diff, ablate="resample", dictionaries={"sae": SAE})
    assert drawn.scores.abs().max() > 0.05


def test_neurons_as_a_transcoder_are_the_neurons(model):
    """A transcoder reads the MLP's input and writes its output; for the model's own neurons that is exact."""
    dictionaries = {f"n{layer}": one for layer, one in enumerate(neurons(model))}
    features = [f"L{layer}.mlp_out[n{layer}]@-1#{i}" for layer in range(2) for i in (0, 5, 23)]
    own = [f"L{layer}.mlp_post@-1#{i}" for layer in range(2) for i in (0, 5, 23)]
    for options in ({}, {"mode": "noise"}, {"ablate": "zero"}, {"ablate": "mean"}):
        found = mk.patch(model, PAIR, features, mk.logit_diff, dictionaries=dictionaries, **options)
        torch.testing.assert_close(found.scores, mk.patch(model, PAIR, own, mk.logit_diff, **options).scores, **CLOSE)
        assert found.scores.abs().max() > 1e-3
    layer = {"n1": dictionaries["n1"]}
    whole = mk.patch(model, PAIR, [["L1.mlp_out[n1]#*"], "L1.mlp_out[n1]"], mk.logit_diff, dictionaries=layer)
    expected = mk.patch(model, PAIR, "L1.mlp_out", mk.logit_diff).scores.expand(2, -1)
    torch.testing.assert_close(whole.scores, expected, **CLOSE)


@pytest.mark.parametrize(("place", "d_in"), [("L0.H1.z[sae]@-1", 8), ("L0.z[sae]@-1", 16), ("L0.z[sae]", 16)])
def test_dictionaries_of_one_head_and_of_all_heads_flattened(model, place, d_in):
    sae = Sae(d_in, seed=3)
    given = {"sae": sae}
    found = mk.patch(model, PAIR, [f"{place}#*", [f"{place}#1", f"{place}#2"]], mk.logit_diff, dictionaries=given)
    rows = [[(row[0], [site.index for site in row])] for row in found.groups]
    torch.testing.assert_close(found.scores, by_hand(model, PAIR, rows, sae), **CLOSE)
    # L1.mlp_out@0 is read by nothing; with it in the row, features are encoded in the run and set
    row = [*found.groups[-1], "L1.mlp_out@0"]
    beside = mk.patch(model, PAIR, [row], mk.logit_diff, dictionaries=given)
    torch.testing.assert_close(beside.scores, found.scores[-1:], **CLOSE)


def test_an_sae_of_saelens_fits_as_it_is(model):
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=7, device="cpu"))
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_pre"
    sae.load_state_dict({**sae.state_dict(), "W_enc": SAE.W_enc, "W_dec": SAE.W_dec})
    found = mk.patch(model, PAIR, "L1.resid_pre[sae]@-1#*", mk.logit_diff, dictionaries={"sae": sae})
    same = mk.patch(model, PAIR, "L1.resid_pre[sae]@-1#*", mk.logit_diff, dictionaries={"sae": SAE})
    torch.testing.assert_close(found.scores, same.scores, **CLOSE)
    assert not found.scores.requires_grad
    with pytest.raises(ValueError, match=r"'sae' is of 'L1.resid_pre', not of site 'L0.resid_pre\[sae\]@-1'"):
        mk.patch(model, PAIR, "L0.resid_pre[sae]@-1", mk.logit_diff, dictionaries={"sae": sae})


def rescaled():
    sae = Sae(16)
    sae.cfg.normalize_activations = "layer_norm"
    return sae


def reads_elsewhere():
    zeros = torch.zeros
    return Transcoder(
        0, zeros(16, 2), zeros(2), zeros(2, 16), zeros(16), "blocks.0.nowhere", "blocks.0.hook_mlp_out"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("site", "dictionaries", "message"),
    [
        ("L0.resid_pre[a]#1", {"sae": SAE}, r"is in the dictionary 'a'; given are sae: dictionaries="),
        ("L0.resid_pre[sae]#7", {"sae": SAE}, "the dictionary has features #0 to #6"),
        ("L0.resid_pre[sae]#1", {"sae": rescaled()}, r"rescales each input \(layer_norm\)"),
        ("L0.resid_pre[sae]#1", {"sae": Sae(5)}, r"a dictionary of width 5 does not fit activations of"),
        ("L0.mlp_out[t]#1", {"t": reads_elsewhere()}, "'t' reads 'blocks.0.nowhere', and the model has no such hook"),
    ],
)
def test_dictionaries_that_do_not_fit_are_errors(model, site, dictionaries, message):
    with pytest.raises(ValueError, match=message):
        mk.patch(model, PAIR, site, mk.logit_diff, dictionaries=dictionaries)

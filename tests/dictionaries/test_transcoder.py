"""Transcoders and neurons: exact where they claim to be, and equal to SAELens's own classes."""

from dataclasses import replace

import pytest
import torch
from sae_lens.registry import get_sae_class

from mechkit.dictionaries import Transcoder, load_transcoders, neurons
from mechkit.dictionaries.loading import ARCHITECTURES, read_saelens
from mechkit.zoo.training import new_model

TOKENS = torch.tensor([[1, 2, 3, 4], [4, 3, 0, 1]])


def tiny(**settings):
    defaults = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 4, "d_vocab": 5, "act_fn": "relu"}
    model = new_model(0, **{**defaults, "default_prepend_bos": False, "device": "cpu", **settings})
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def save_saelens(path, architecture, *, d_in=8, d_features=6, layer=0, **metadata):
    """A SAELens transcoder with random weights, saved by SAELens."""
    sae_class, cfg_class = get_sae_class(architecture)
    cfg = cfg_class(d_in=d_in, d_sae=d_features, d_out=d_in, apply_b_dec_to_input=False, device="cpu")
    names = {"hook_name": f"blocks.{layer}.ln2.hook_normalized", "hook_name_out": f"blocks.{layer}.hook_mlp_out"}
    for key, value in {**names, **metadata}.items():
        cfg.metadata[key] = value
    with torch.random.fork_rng():
        torch.manual_seed(layer)
        transcoder = sae_class(cfg)
        for parameter in transcoder.parameters():
            parameter.data = 0.5 * torch.randn_like(parameter)
    transcoder.save_model(path / f"layer_{layer}")
    return transcoder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_saelens_saves_reads_back_and_computes_the_same(tmp_path, architecture):
    theirs = [save_saelens(tmp_path, architecture, layer=layer) for layer in (0, 1)]
    x = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(0))
    for ours, sae in zip(load_transcoders(tmp_path, tiny()), theirs, strict=True):
        features = ours.activations(x)
        assert (features > 0).any()
        assert (features == 0).any()
        # The same products in the same order: only the sum with the skip term may be grouped otherwise.
        torch.testing.assert_close(features, sae.encode(x), rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.decode(features, x), sae(x), rtol=0, atol=1e-5)


def test_reading_saelens_files_leaves_out_nothing(tmp_path):
    sae = save_saelens(tmp_path, "jumprelu_skip_transcoder")
    _, tensors = read_saelens(tmp_path / "layer_0")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        n: tuple(p.shape) for n, p in sae.named_parameters()
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalization_type": "LNPre"},
        {"normalization_type": "RMS"},
        {"normalization_type": None},
        {"normalization_type": None, "parallel_attn_mlp": True},
        {"act_fn": "gelu"},
        {"act_fn": "silu", "parallel_attn_mlp": True},
    ],
)
def test_neurons_rebuild_the_mlp(settings):
    model = tiny(**settings)
    _, cache = model.run_with_cache(TOKENS)
    for layer, basis in enumerate(neurons(model)):
        x = cache[basis.hook_in]
        torch.testing.assert_close(basis.preactivations(x), cache[f"blocks.{layer}.mlp.hook_pre"])
        torch.testing.assert_close(basis.activations(x), cache[f"blocks.{layer}.mlp.hook_post"])
        torch.testing.assert_close(basis.decode(basis.activations(x)), cache[basis.hook_out])
        assert (basis.layer, basis.name, basis.d_features) == (layer, "neurons", model.cfg.d_mlp)


@pytest.mark.parametrize(
    "settings",
    [{"gated_mlp": True, "act_fn": "silu"}, {"act_fn": "solu_ln"}, {"num_experts": 3, "experts_per_token": 2}],
)
def test_neurons_of_other_mlps_rebuild_them_too(settings):
    model = tiny(**{"normalization_type": "RMS", **settings})
    _, cache = model.run_with_cache(TOKENS)
    for basis in neurons(model):
        x = cache[basis.hook_in]
        rebuilt = torch.stack([basis.decode(basis.activations(one)) for one in x])
        torch.testing.assert_close(rebuilt, cache[basis.hook_out], rtol=1e-4, atol=1e-5)  # float32


def test_a_model_without_mlps_has_no_neurons():
    assert neurons(tiny(attn_only=True)) == []


def test_gated_neurons_have_the_derivatives_of_their_two_parts():
    basis = neurons(tiny(gated_mlp=True, act_fn="silu", normalization_type="RMS"))[0]
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = replace(
        basis, **{name: getattr(basis, name).double() for name in ("W_gate", "b_gate", "W_linear", "b_linear")}
    )
    parts = [one.requires_grad_(True) for one in basis.sums(x)]
    value = (basis.function(parts[0]) * parts[1]).sum()
    for ours, true in zip(basis.slopes(x), torch.autograd.grad(value, parts), strict=True):
        torch.testing.assert_close(ours, true)


def test_neurons_under_a_norm_have_the_diagonal_of_their_jacobian_as_slopes():
    basis = neurons(tiny(act_fn="solu_ln", d_mlp=7))[0]
    pre = torch.randn(1, 7, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(basis.function, pre)
    torch.testing.assert_close(basis.slope(pre)[0], jacobian[0, :, 0].diagonal(), rtol=1e-4, atol=1e-6)  # float32


@pytest.mark.parametrize(("over", "kept"), [("token", [2, 2]), ("prompt", [3, 1])])
def test_topk_keeps_the_largest_of_a_token_or_of_the_prompt(over, kept):
    pre = torch.tensor([[5.0, 4.0, 3.0, -1.0], [2.0, 1.0, 0.5, 0.1]])
    eye, zeros = torch.eye(4), torch.zeros(4)
    transcoder = Transcoder(0, eye, zeros, eye, zeros, "in", "out", k=2, over=over)
    assert (transcoder.activate(pre) != 0).sum(1).tolist() == kept
    torch.testing.assert_close(transcoder.activate(pre), pre.where(transcoder.slope(pre) > 0, torch.zeros(())))
    with pytest.raises(ValueError, match="keeps k = 9 of 3 features"):
        replace(basis(), k=9)


def basis(threshold=None, function=None, W_skip=None) -> Transcoder:
    eye = torch.eye(3)
    return Transcoder(0, eye, torch.zeros(3), eye, torch.ones(3), "in", "out", threshold, W_skip, "b", function)


@pytest.mark.parametrize(
    ("threshold", "function"), [(None, None), (torch.tensor([0.5, -1.0, 0.0]), None), (None, torch.nn.functional.gelu)]
)
def test_the_slope_is_the_derivative_of_the_activation(threshold, function):
    transcoder = basis(threshold, function)
    pre = torch.tensor([[-2.0, -0.5, 0.3], [0.4, 0.6, 2.0], [0.7, -0.2, -0.1]])
    step = 1e-3
    rise = (transcoder.activate(pre + step) - transcoder.activate(pre - step)) / (2 * step)
    torch.testing.assert_close(transcoder.slope(pre), rise, rtol=0, atol=1e-3)  # float32 over a step of 1e-3


def test_a_feature_at_its_threshold_is_not_active():
    transcoder = basis(torch.tensor([0.5, 0.5, 0.0]))
    pre = torch.tensor([0.5, 0.51, 0.0])
    assert transcoder.activate(pre).tolist() == pytest.approx([0, 0.51, 0])
    assert transcoder.slope(pre).tolist() == [0, 1, 0]


def test_a_skip_connection_needs_the_input():
    transcoder = basis(W_skip=torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]]))
    x = torch.tensor([1.0, 2, 3])
    assert transcoder.decode(torch.zeros(3), x).tolist() == [3, 1, 1]
    with pytest.raises(ValueError, match="decode needs the MLP's input"):
        transcoder.decode(torch.zeros(3))

"""The drop-in functions give the tensors of `transformer_lens.patching`, which runs them one by one."""

import pandas as pd
import pytest
import torch
import transformer_lens.patching as peer

from mechkit.patching import compat

CLEAN = torch.tensor([[3, 1, 4, 1], [9, 2, 6, 5], [5, 3, 5, 8]])
CORRUPT = torch.tensor([[3, 7, 4, 2], [9, 1, 6, 6], [5, 9, 5, 7]])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
"""Sums in another order: the peer runs whole hooked passes."""

NAMES = [name for name in dir(peer) if name.startswith("get_act_patch_")]
MODELS = {
    "plain": {},
    "grouped rotary gated": {
        "n_heads": 4, "d_head": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 4,
        "gated_mlp": True, "normalization_type": "RMS",
    },
    "bidirectional, one head": {"attention_dir": "bidirectional", "n_heads": 1, "d_head": 16},
}  # fmt: skip


def whole_batch(logits):
    """Reads every position of every prompt, weighing each otherwise."""
    weights = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
    return (logits * weights).sum()


def last_position(logits):
    return (logits[:, -1, 3] - logits[:, -1, 4]).mean()


@pytest.fixture(scope="module")
def prepared(build):
    made = {}
    for name, changes in MODELS.items():
        model = build(**changes)
        made[name] = model, model.run_with_cache(CLEAN)[1]
    return made


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(peer, "tqdm", lambda items: items)


def test_every_function_of_the_peer_is_here():
    assert len(NAMES) == 18
    for name in [*NAMES, *(name for name in dir(peer) if name.endswith("_patch_setter")), "make_df_from_ranges"]:
        assert hasattr(compat, name), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MODELS)
def test_the_answers_are_the_peers(prepared, kind, name):
    model, cache = prepared[kind]
    metric = last_position if name.endswith("all_pos_every") else whole_batch
    with torch.no_grad():
        theirs = getattr(peer, name)(model, CORRUPT, cache, metric)
    ours = getattr(compat, name)(model, CORRUPT, cache, metric)
    assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert ours.std() > 1e-3  # patches differ


def test_a_scalar_metric_is_called_on_the_whole_batch_and_once_per_run(prepared):
    model, cache = prepared["plain"]
    seen = []

    def metric(logits):
        seen.append(tuple(logits.shape))
        return logits[:, -1, 3].sum().item() if len(seen) % 2 else logits[:, -1, 3].sum()

    scores = compat.get_act_patch_resid_pre(model, CORRUPT, cache, metric)
    assert set(seen) == {(3, 4, 30)}
    assert scores.numel() <= len(seen) <= scores.numel() + 12  # the engine's few trials of what it reads


def test_a_metric_of_several_numbers_is_an_error(prepared):
    model, cache = prepared["plain"]
    with pytest.raises(ValueError, match=r"patching_metric gave \[3\]; it must give one number for the whole batch"):
        compat.get_act_patch_resid_pre(model, CORRUPT, cache, lambda logits: logits[:, -1, 3])


def test_the_given_cache_decides_the_values(prepared):
    model, cache = prepared["plain"]
    corrupt = dict(model.run_with_cache(CORRUPT)[1])
    same = compat.get_act_patch_attn_out(model, CORRUPT, corrupt, whole_batch)
    torch.testing.assert_close(same, whole_batch(model(CORRUPT)).detach().expand_as(same), **CLOSE)
    strange = {name: value + 1 for name, value in cache.items()}
    with torch.no_grad():
        theirs = peer.get_act_patch_attn_out(model, CORRUPT, strange, whole_batch)
    torch.testing.assert_close(compat.get_act_patch_attn_out(model, CORRUPT, strange, whole_batch), theirs, **CLOSE)
    one = {name: value[:1] for name, value in cache.items()}  # one clean prompt for all corrupt ones
    with torch.no_grad():
        theirs = peer.get_act_patch_resid_mid(model, CORRUPT, one, whole_batch)
    torch.testing.assert_close(compat.get_act_patch_resid_mid(model, CORRUPT, one, whole_batch), theirs, **CLOSE)
    with pytest.raises(ValueError, match="the cache holds 2 prompts, the corrupted tokens 3"):
        compat.get_act_patch_resid_pre(model, CORRUPT, {name: x[:2] for name, x in cache.items()}, whole_batch)


SETTERS = {
    "layer_pos_patch_setter": ("mlp_post", ["layer", "pos"]),
    "layer_pos_head_vector_patch_setter": ("key", ["layer", "pos", "head"]),
    "layer_head_vector_patch_setter": ("v", ["layer", "head_index"]),
    "layer_head_pattern_patch_setter": ("attn", ["layer", "head"]),
    "layer_head_pos_pattern_patch_setter": ("attn_scores", ["layer", "head", "dest_pos"]),
    "layer_head_dest_src_pos_pattern_patch_setter": ("pattern", ["layer", "head", "dest_pos", "src_pos"]),
}


@pytest.mark.parametrize("whose", [peer, compat])
@pytest.mark.parametrize("name", SETTERS)
def test_setters_of_either_library_are_the_same_patches(prepared, name, whose):
    model, cache = prepared["plain"]
    activation, axes = SETTERS[name]
    args = (model, CORRUPT, cache, whole_batch)
    ours, table = compat.generic_activation_patch(*args, getattr(whose, name), activation, axes, return_index_df=True)
    with torch.no_grad():
        theirs, expected = peer.generic_activation_patch(
            *args, getattr(peer, name), activation, axes, return_index_df=True
        )
    torch.testing.assert_close(ours, theirs, **CLOSE)
    pd.testing.assert_frame_equal(table, expected)
    x, clean = torch.rand(2, 3, 3, 3), torch.rand(2, 3, 3, 3)
    index = [0, 1, 2, 1][: len(axes)]
    before = x.clone()
    patched = getattr(compat, name)(x, index, clean)
    assert torch.equal(x, before)
    assert torch.equal(patched, getattr(peer, name)(x.clone(), index, clean))


def add_half(corrupted_activation, index, clean_activation):
    """Not a replacement, and in place: the batch's prompts are mixed too."""
    corrupted_activation[:, index[1]] += 0.5 * clean_activation.mean(0)[index[1]]
    return corrupted_activation


def in_place_only(corrupted_activation, index, clean_activation):
    corrupted_activation[:, :, 0] = clean_activation[:, :, index[1]]


@pytest.mark.parametrize(("setter", "activation"), [
    (add_half, "resid_mid"), (in_place_only, "z"), (compat.layer_pos_head_vector_patch_setter, "mlp_post"),
])  # fmt: skip
def test_setters_of_ones_own_do_what_they_do_in_a_plain_loop(prepared, setter, activation):
    model, cache = prepared["plain"]
    table = pd.DataFrame({"layer": [1, 0, 1], "pos": [1, 0, 0], "head": [3, 2, 1]})
    args = (model, CORRUPT, cache, whole_batch, setter, activation)
    with torch.no_grad():
        theirs = peer.generic_activation_patch(*args, index_df=table)
    torch.testing.assert_close(compat.generic_activation_patch(*args, index_df=table), theirs, **CLOSE)
    assert theirs.std() > 1e-3


def test_indices_are_given_one_way():
    args = (None, CORRUPT, {}, whole_batch, compat.layer_pos_patch_setter, "resid_pre")
    for given in ({}, {"index_axis_names": ["layer"], "index_df": pd.DataFrame({"layer": [0]})}):
        with pytest.raises(ValueError, match="give either index_axis_names or index_df"):
            compat.generic_activation_patch(*args, **given)


def test_an_unknown_axis_or_hook_is_an_error(prepared):
    model, cache = prepared["plain"]
    args = (model, CORRUPT, cache, whole_batch, compat.layer_pos_patch_setter)
    with pytest.raises(ValueError, match="no axis 'position'; there are layer, head"):
        compat.generic_activation_patch(*args, "resid_pre", ["layer", "position"])
    with pytest.raises(KeyError):
        compat.generic_activation_patch(*args, "resid_nowhere", ["layer", "pos"])

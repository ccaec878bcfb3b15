"""What features do, each against a hook written out by hand."""

import numpy as np
import pytest
import torch

import mechkit as mk
from mechkit.features import FeatureIndex, effect, scan
from tests.features.tiny import HOOK, tiny_sae, token_rows

TOKENS = [[3, 1, 4, 1, 5, 9, 2], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]
SAES = {
    "an SAE of the stream": {},
    "of one head": {"hook": "blocks.0.attn.hook_z", "d_in": 8, "hook_head_index": 1},
    "of an MLP's output": {"hook": "blocks.1.hook_mlp_out"},
}


@pytest.fixture
def prompts():
    return mk.Prompts.from_tokens(TOKENS, [7, 8, 9], [10, 11, 12], spans={"s": [(0, 2), (1, 3), (2, 3)]})


def by_hand(model, sae, prompts, metric, change, error=True, at=None):
    """The metric of every prompt with activations changed by a hook; `change(active)` gives the new ones."""
    hook, head = sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_head_index
    out = sae.cfg.metadata.hook_name_out or hook
    values = []
    for i, length in enumerate(prompts.lengths):
        one, kept = prompts[i], {}

        def read(x, hook, kept=kept):
            kept["x"] = x if head is None else x[:, :, head]

        def write(y, hook, kept=kept, length=length):
            active = sae.encode(kept["x"])
            new = active.clone()
            places = range(length) if at is None else at(length)
            for place in places:
                new[:, place] = change(active[:, place])
            sae.encode(kept["x"])
            rebuilt = sae.decode(active)
            sae.encode(kept["x"])
            edited = sae.decode(new)
            y = y.clone()
            if head is None:
                return edited.reshape(y.shape) if not error else y + (edited - rebuilt).reshape(y.shape)
            y[:, :, head] = edited if not error else y[:, :, head] + edited - rebuilt
            return y

        with torch.no_grad():
            logits = model.run_with_hooks(one.tokens, fwd_hooks=[(hook, read), (out, write)])
        values.append(float(metric(logits, one)))
    return np.array(values)


def taken_out(feature, factor=0.0):
    def change(active):
        active = active.clone()
        active[:, feature] *= factor
        return active

    return change


def held_at(feature, value):
    def change(active):
        active = active.clone()
        active[:, feature] = value
        return active

    return change


def nothing(active):
    return active


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("kind", SAES)
def test_taking_a_feature_out_is_what_a_hook_says(model, prompts, kind, error):
    sae = tiny_sae(**SAES[kind])
    found = effect(model, sae, [3, 7, 11], prompts, mk.logit_diff, error=error)
    before = by_hand(model, sae, prompts, mk.logit_diff, nothing, error)
    for i, feature in enumerate((3, 7, 11)):
        wanted = by_hand(model, sae, prompts, mk.logit_diff, taken_out(feature), error) - before
        np.testing.assert_allclose(found.scores[i], wanted, atol=3e-6)
    assert found.scores.abs().max() > 1e-2
    np.testing.assert_allclose(found.meta["before"], before, atol=3e-6)
    assert found.unit == "logits"


def test_scaling_and_steering_are_what_a_hook_says(model, prompts):
    sae = tiny_sae()
    before = by_hand(model, sae, prompts, mk.logprob, nothing)
    doubled = effect(model, sae, 3, prompts, scale=2.0).scores[0]
    np.testing.assert_allclose(doubled, by_hand(model, sae, prompts, mk.logprob, taken_out(3, 2.0)) - before, atol=3e-6)
    steered = effect(model, sae, 3, prompts, steer=2.5).scores[0]
    np.testing.assert_allclose(steered, by_hand(model, sae, prompts, mk.logprob, held_at(3, 2.5)) - before, atol=3e-6)
    same = effect(model, sae, 3, prompts, scale=1.0).scores[0]
    assert same.abs().max() == 0 < min(doubled.abs().max(), steered.abs().max())


PLACES = {
    -1: lambda n: [n - 1],
    0: lambda n: [0],
    "1:3": lambda n: [1, 2],
    "-2:": lambda n: [n - 2, n - 1],
}


@pytest.mark.parametrize(("pos", "places"), PLACES.items())
def test_only_the_chosen_positions_change(model, prompts, pos, places):
    sae = tiny_sae()
    before = by_hand(model, sae, prompts, mk.logit_diff, nothing)
    found = effect(model, sae, [3, 7], prompts, mk.logit_diff, pos=pos)
    for i, feature in enumerate((3, 7)):
        wanted = by_hand(model, sae, prompts, mk.logit_diff, taken_out(feature), at=places) - before
        np.testing.assert_allclose(found.scores[i], wanted, atol=3e-6)
    assert found.scores.abs().max() > 1e-3


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale"])
def test_an_sae_that_rescales_every_input_is_followed(model, prompts, scaling):
    sae = tiny_sae()
    sae.cfg.normalize_activations = scaling
    sae._setup_activation_normalization()
    before = by_hand(model, sae, prompts, mk.logit_diff, nothing)
    found = effect(model, sae, 3, prompts, mk.logit_diff)
    wanted = by_hand(model, sae, prompts, mk.logit_diff, taken_out(3)) - before
    np.testing.assert_allclose(found.scores[0], wanted, atol=1e-5)
    assert found.scores.abs().max() > 1e-2


def test_a_transcoder_is_edited_where_it_writes(model, prompts):
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.transcoder import Transcoder, TranscoderConfig

    about = SAEMetadata(hook_name="blocks.0.ln2.hook_normalized", hook_name_out="blocks.0.hook_mlp_out")
    transcoder = Transcoder(TranscoderConfig(d_in=16, d_sae=24, d_out=16, apply_b_dec_to_input=False, metadata=about))
    generator = torch.Generator().manual_seed(3)
    for parameter in transcoder.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    before = by_hand(model, transcoder, prompts, mk.logit_diff, nothing)
    found = effect(model, transcoder, 5, prompts, mk.logit_diff)
    wanted = by_hand(model, transcoder, prompts, mk.logit_diff, taken_out(5)) - before
    np.testing.assert_allclose(found.scores[0], wanted, atol=3e-6)
    assert found.scores.abs().max() > 1e-3
    assert str(found.sites[0]) == "L0.mlp_out[sae]#5"


def test_tokens_that_are_ignored_are_never_edited(model, prompts):
    sae, features = tiny_sae(), list(range(24))
    found = effect(model, sae, features, prompts, mk.logit_diff, ignore=[9]).scores
    for i, row in enumerate(TOKENS):
        kept = [place for place, token in enumerate(row) if token != 9]
        before = by_hand(model, sae, prompts[i], mk.logit_diff, nothing)
        for feature in (7, 11, 15):
            wanted = by_hand(model, sae, prompts[i], mk.logit_diff, taken_out(feature), at=lambda n, kept=kept: kept)
            np.testing.assert_allclose(found[feature, i], wanted[0] - before[0], atol=3e-6)
    assert (found - effect(model, sae, features, prompts, mk.logit_diff).scores).abs().max() > 1e-2


def test_patch_agrees_on_the_sites_that_come_back(model, prompts):
    sae = tiny_sae()
    found = effect(model, sae, [3, 7, 11], prompts, mk.logit_diff, pos=-1, name="mine")
    again = mk.patch(model, prompts, found.sites, mk.logit_diff, ablate="zero", dictionaries={"mine": sae})
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-6)


def test_all_features_go_in_one_sweep(model, prompts, monkeypatch):
    import mechkit.features.effects as effects

    calls = []
    monkeypatch.setattr(effects, "sweep", lambda *a, **k: calls.append(len(a[2])) or mk.sweep(*a, **k))
    effect(model, tiny_sae(), range(24), prompts, mk.logit_diff)
    assert calls == [25]


@pytest.fixture(scope="module")
def index(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("effects") / "index"
    return scan(model, {"mine": tiny_sae()}, token_rows(), folder, top=4, sample=8, window=(3, 2), ignore=[9])


def test_an_index_asks_with_its_own_sae_and_tokens(index, model, prompts):
    index = FeatureIndex.open(index.folder, model=model)
    found = index.effect([3, 7], prompts, mk.logit_diff)
    wanted = effect(model, tiny_sae(), [3, 7], prompts, mk.logit_diff, ignore=[9])
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    assert [str(site) for site in found.sites] == ["L1.resid_pre[mine]#3", "L1.resid_pre[mine]#7"]
    assert index.effect(3, [3, 1, 4]).scores.shape == (1, 1)
    assert index.effect(3, [[3, 1], [4, 1, 5]]).scores.shape == (1, 2)
    likeliest = int(model(torch.tensor([[3, 1, 4]]))[0, -1].argmax())
    own = index.effect(3, mk.Prompts.from_tokens([3, 1, 4], [likeliest]))
    assert torch.equal(own.scores, index.effect(3, [3, 1, 4]).scores)


def test_lookup_ranks_by_what_features_do(index, model):
    index = FeatureIndex.open(index.folder, model=model)
    prompt = mk.Prompts.from_tokens([3, 1, 4, 9, 5], [7], [8])
    ranked = index.lookup(prompt, effect=mk.logit_diff)
    plain = index.lookup(prompt)
    assert len(ranked) == len(plain)
    assert (ranked.rows["effect"].abs().diff().dropna() <= 0).all()
    assert ranked.unit == "logits"
    for row in ranked.rows.iloc[[0, 1, -1]].to_dict("records"):
        alone = index.effect(int(row["feature"]), prompt, mk.logit_diff, pos=int(row["pos"])).scores
        assert row["effect"] == pytest.approx(float(alone[0, 0]), abs=1e-6)
    assert (ranked.rows.query("pos == 3")["effect"] == 0).all()
    assert ranked.rows["effect"].abs().max() > 1e-2
    order = ranked.rows.groupby("pos").head(1).set_index("pos")["feature"]
    assert index.lookup(prompt, n=1, effect=mk.logit_diff).rows.set_index("pos")["feature"].to_dict() == order.to_dict()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m, p: effect(m, tiny_sae(), 24, p), "no feature 24; the SAE has 0 to 23"),
        (lambda m, p: effect(m, tiny_sae(), [], p), "no features are given"),
        (lambda m, p: effect(m, tiny_sae(), 1, p, scale=2.0, steer=1.0), "give one of the two"),
        (lambda m, p: effect(m, tiny_sae(d_in=8), 1, p), f"reads 8 numbers; {HOOK} of this model has 16"),
    ],
)
def test_what_cannot_be_asked_is_said(model, prompts, ask, words):
    with pytest.raises(ValueError, match=words):
        ask(model, prompts)

"""The paper's section on addition, end to end; and what its interventions are made of against plain loops."""

import json
from dataclasses import replace

import pytest
import torch
import typer
from safetensors.torch import save_file

import mechkit as mk
from mechkit.dictionaries import transcoders_for
from mechkit.graphs.nodes import Node
from mechkit.graphs.sums.sum_features import SumFeatures, grid_of
from mechkit.graphs.sums.sum_trials import interval, others
from mechkit.zoo import save_folder
from mechkit.zoo.addition import unseen_sums
from scripts import addition_35_59 as script

SUMS = unseen_sums()[::100]


@pytest.fixture(scope="module")
def features(addition):
    bases = transcoders_for(addition)
    nodes = [Node("feature", basis.layer, 3, i, basis.name) for basis in bases for i in range(basis.d_features)]
    return SumFeatures.of(addition, bases, grid_of(addition, "35+59="), nodes)


@pytest.fixture
def lookups(features):
    return features.which(lambda meaning: meaning.group == "ones-digit lookup")


def answered(model, edits, text):
    """The model's answer with what is added to MLP outputs at the last position, by plain hooks."""

    def hook(layer):
        def add(x, hook):
            x = x.clone()
            x[0, -1] += edits[layer]
            return x

        return f"blocks.{layer}.hook_mlp_out", add

    logits = model.run_with_hooks(model.to_tokens(text), fwd_hooks=[hook(layer) for layer in edits])
    word = model.tokenizer.decode([int(logits[0, -1].argmax())])
    return int(word) if word.isdigit() else -1


def values_of(model, basis, text):
    _, cache = model.run_with_cache(model.to_tokens(text))
    return basis.activations(cache[basis.hook_in][0, -1:])[0]


@torch.no_grad()
def test_swapped_and_suppressed_features_answer_as_plain_hooks_do(addition, features, lookups):
    sums = SUMS[:6]
    other = [(a - a % 10 + (a + 3) % 10, b) for a, b in sums]
    kinds = {"swap": features.swap(sums, other, lookups), "turn": features.suppress(sums, lookups, scale=-1.0)}
    assert int((kinds["swap"].answers[0] != kinds["turn"].answers[0]).sum()) > 0
    for kind, asked in kinds.items():
        for i, (a, b) in enumerate(sums):
            edits = {}
            for basis in features.bases:
                mine = torch.stack(
                    [m for node, m in zip(features.nodes, lookups, strict=True) if node.layer == basis.layer]
                )
                own = values_of(addition, basis, f"{a}+{b}=")
                new = values_of(addition, basis, f"{other[i][0]}+{other[i][1]}=") if kind == "swap" else -own
                edits[basis.layer] = ((new - own) * mine) @ basis.W_dec
            assert asked.answers[0, i] == answered(addition, edits, f"{a}+{b}="), (kind, a, b)


def test_the_last_digit_follows_swapped_lookups_and_random_features_do_not(features, lookups):
    other, _ = others(SUMS, 0)
    wanted = torch.tensor([a + b for a, b in other])
    follows = lambda asked: asked.share(lambda answers, truth: answers % 10 == wanted % 10)  # noqa: E731
    assert follows(features.swap(SUMS, other, lookups)) == 1.0
    assert follows(features.swap(SUMS, other, lookups, draws=2)) < 0.6
    assert follows(features.suppress(SUMS, lookups)) < 0.5


def test_a_control_changes_as_many_features_of_each_layer(features, lookups):
    seen = []
    kept = features._edits
    object.__setattr__(features, "_edits", lambda change: seen.append((change != 0).sum(1)) or kept(change))
    features.suppress(SUMS, lookups)
    features.suppress(SUMS, lookups, draws=2)
    object.__delattr__(features, "_edits")
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert seen[0].sum() > 20


def test_others_change_one_digit_alone():
    ones, tens = others(SUMS, 3)
    for (a, b), (one, b1), (ten, b2) in zip(SUMS, ones, tens, strict=True):
        assert (one // 10, b1, ten % 10, b2) == (a // 10, b, a % 10, b)
        assert one % 10 != a % 10
        assert abs(ten // 10 - a // 10) >= 2
        assert 0 <= ten < 100


def test_intervals_hold_their_share_and_are_wilsons():
    low, high = interval(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    assert interval(1.0, 200) == pytest.approx((0.9812, 1.0), abs=1e-3)


@pytest.mark.slow
def test_the_section_on_the_bundled_model(tmp_path, capsys):
    script.main(sums=200, graphs=100, out=tmp_path / "one", quick=True)
    said = capsys.readouterr().out
    assert "3584 features on 20 sums" in said
    assert "4 ones-digit lookup features of L0" in said
    assert "36+59= 95" in said
    found = json.loads((tmp_path / "one/addition_35_59.json").read_text())
    swapped = {trial["title"]: trial for trial in found["trials"]}["lookups of both last digits swapped"]
    assert swapped["follows"] == 1.0
    assert swapped["follows_control"] < 0.6
    assert sum(map(sum, found["digits after lookups are swapped"])) == 20
    assert all(found["digits after lookups are swapped"][i][j] == 0 for i in range(10) for j in range(10) if i != j)
    assert (tmp_path / "one/addition_35_59.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def others_model(build, addition, tmp_path):
    """A folder with a random model that answers 94 to everything, and one with transcoders of it."""
    model = build(d_vocab=addition.cfg.d_vocab, n_ctx=5, default_prepend_bos=False)
    model.b_U.data[94] += 30
    model.tokenizer = addition.tokenizer
    generator = torch.Generator().manual_seed(5)
    for layer in range(2):
        folder = tmp_path / f"transcoders/layer_{layer}"
        folder.mkdir(parents=True)
        sizes = {"W_enc": (16, 40), "b_enc": (40,), "W_dec": (40, 16), "b_dec": (16,)}
        save_file(
            {name: 0.3 * torch.randn(size, generator=generator) for name, size in sizes.items()},
            folder / "sae_weights.safetensors",
        )
        hooks = {"hook_name": f"blocks.{layer}.ln2.hook_normalized", "hook_name_out": f"blocks.{layer}.hook_mlp_out"}
        cfg = {"architecture": "transcoder", "d_in": 16, "d_out": 16, "d_sae": 40, "metadata": hooks}
        (folder / "cfg.json").write_text(json.dumps(cfg))
    save_folder(model, tmp_path / "model", processing="none")
    return tmp_path


def test_any_model_with_transcoders_on_sums_it_answers_right(others_model, capsys, monkeypatch):
    monkeypatch.setattr(script, "MOST", 60)  # fewer than its features at its positions, so that graphs choose
    model, transcoders = (str(others_model / name) for name in ("model", "transcoders"))
    script.main(model=model, transcoders=transcoders, sums=12, graphs=4, out=others_model / "out")
    found = json.loads((others_model / "out/addition_35_59.json").read_text())
    assert 2 <= found["sums"] <= 12
    nothing = found["trials"][0]
    assert nothing["shares"] == {"right": 1.0, "last digit kept": 1.0, "size kept": 1.0}
    assert "60 features on" in capsys.readouterr().out


def test_what_is_missing_is_said(others_model, addition, build, monkeypatch):
    with pytest.raises(typer.BadParameter, match="comes without transcoders"):
        script.main(model=str(others_model / "model"), out=others_model / "out")
    with pytest.raises(typer.BadParameter, match=r"'last 94=' does not stand for a grid of sums"):
        script.main(prompt="last 94=", out=others_model / "out")
    wrong = build(d_vocab=addition.cfg.d_vocab, n_ctx=5, default_prepend_bos=False)
    wrong.tokenizer, wrong.cfg.tokenizer_prepends_bos = addition.tokenizer, False
    wrong.b_U.data[5] += 30
    wrong.b_U.data[200] += 90
    with pytest.raises(typer.BadParameter, match=r"the model answers 0 of 1000 sums .* with '\+'"):
        script.drawn_sums(wrong, "mine", "35+59=", 20, 0)


def test_a_hub_repository_is_fetched(others_model, monkeypatch):
    import huggingface_hub

    asked = []
    folder = str(others_model / "transcoders")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: asked.append(name) or folder)
    found = script.dictionaries(mk.load(str(others_model / "model")), "owner/name")
    assert asked == ["owner/name"]
    assert [basis.d_features for basis in found] == [40, 40]


def test_tokens_per_digit_are_refused_with_what_was_read(build):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({one: i for i, one in enumerate("0123456789+=?")}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    model = build(default_prepend_bos=False)
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?", bos_token="?")
    model.cfg.tokenizer_prepends_bos = False
    with pytest.raises(ValueError, match=r"this model reads '7\+7' as .*and '77\+77' as \['7', '7', '\+', '7', '7'\]"):
        grid_of(model, "35+59=")


def test_dictionaries_under_a_norm_are_refused(addition, features):
    bases = [
        replace(basis, hook_out=basis.hook_out.replace("hook_mlp_out", "mlp.hook_out")) for basis in features.bases
    ]
    with pytest.raises(ValueError, match="write under a norm after the MLP"):
        SumFeatures.of(addition, bases, features.grid, features.nodes[:2])

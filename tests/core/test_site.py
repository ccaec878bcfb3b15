import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechkit.core.site import HEAD_NAMES, SQUARE_NAMES, Edge, Site, short_name

COUNTS = st.none() | st.integers(0, 10_000) | st.just("*")
WORDS = st.text("abcXYZ_", min_size=1, max_size=5)
SPANS = WORDS | st.builds("{}[{}]".format, WORDS, st.integers(-9, 9))
STRETCHES = st.builds("{}:{}".format, st.integers(-20, 20), st.integers(-20, 20) | st.just(""))
POSITIONS = st.none() | st.integers(-2000, 2000) | st.just("*") | STRETCHES | SPANS
BASES = st.none() | st.text("aB0_./ :-", min_size=1, max_size=8)
NAMES = st.sampled_from([*sorted(HEAD_NAMES), "resid_pre", "mlp_post", "post", "mlp_out", "ln2.normalized", "attn_out"])

LAW = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Seeded, and without limits on time: the tests share a busy machine."""


@st.composite
def sites(draw):
    name = draw(NAMES)
    square = name in SQUARE_NAMES
    return Site(
        name,
        layer=draw(COUNTS.filter(lambda layer: layer is not None)),
        head=draw(COUNTS) if name in HEAD_NAMES else None,
        pos=draw(POSITIONS),
        src=draw(POSITIONS) if square else None,
        index=None if square else draw(COUNTS),
        basis=draw(BASES),
    )


@LAW
@given(sites())
def test_every_site_reads_back_from_its_text(site):
    assert Site.parse(str(site)) == site


@LAW
@given(sites(), sites())
def test_every_edge_reads_back_from_its_text(sender, receiver):
    edge = Edge(sender, receiver)
    assert Edge.parse(str(edge)) == edge


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("L9.H6.z@-1", {"name": "z", "layer": 9, "head": 6, "pos": -1}),
        ("L*.H*.z@-1", {"name": "z", "layer": "*", "head": "*", "pos": -1}),
        ("L23.resid_mid@subject[-1]", {"name": "resid_mid", "layer": 23, "pos": "subject[-1]"}),
        ("L0.resid_pre@2:5", {"name": "resid_pre", "layer": 0, "pos": "2:5"}),
        ("L0.resid_pre@-3:", {"name": "resid_pre", "layer": 0, "pos": "-3:"}),
        ("L5.H1.pattern@9<-4", {"name": "pattern", "layer": 5, "head": 1, "pos": 9, "src": 4}),
        ("L5.H1.pattern@<-4", {"name": "pattern", "layer": 5, "head": 1, "src": 4}),
        ("L5.H1.pattern@*<-*", {"name": "pattern", "layer": 5, "head": 1, "pos": "*", "src": "*"}),
        ("L8.mlp_post#*", {"name": "mlp_post", "layer": 8, "index": "*"}),
        ("L8.resid_pre[sae]#4812", {"name": "resid_pre", "layer": 8, "basis": "sae", "index": 4812}),
        ("L8.resid_pre[a/b-c.d]@2#4", {"name": "resid_pre", "layer": 8, "basis": "a/b-c.d", "pos": 2, "index": 4}),
        ("embed@0", {"name": "embed", "pos": 0}),
    ],
)
def test_text_means_these_parts(text, parts):
    assert Site.parse(text) == Site(**parts)
    assert str(Site.parse(text)) == text
    assert repr(Site.parse(text)) == f"Site('{text}')"


def test_aliases_are_the_same_site():
    assert Site.parse("L3.post#7") == Site.parse("L3.mlp_post#7")
    assert Site.parse("L3.pre") == Site.parse("L3.mlp_pre")
    assert Site.parse("ln_final.normalized") == Site.parse("ln_final")


def test_numeric_text_is_the_same_site():
    assert Site("z", "3", "1", "-1") == Site.parse("L3.H1.z@-1")


def test_numbers_of_other_libraries_are_the_same_site():
    # In a process of its own: here the annotations, which promise only int, are enforced.
    code = (
        "import numpy as np; from mechkit.core.site import Site; s = Site('z', np.int64(3), np.int32(1), np.int8(-1)); "
    )
    code += "assert s == Site.parse('L3.H1.z@-1') and type(s.layer) is int, s"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "text",
    ["", "L9", "L9.H6.z@", "L9.H6.z@-", "L9.z@#3", "L.z", "L9.H6", "L9 z", "L0.z@1:2:3", "L0.z@:", "L0.z#-1", "L0.z[]"],
)
def test_text_that_is_no_site_is_quoted_in_the_error(text):
    with pytest.raises(ValueError, match="cannot read site") as error:
        Site.parse(text)
    assert f"'{text}'" in str(error.value)


@pytest.mark.parametrize("text", ["L0.z", "L0.z -> L1.q -> L2.q", "L0.z -> nothing here"])
def test_text_that_is_no_edge_is_an_error(text):
    with pytest.raises(ValueError, match="cannot read"):
        Edge.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L0.H3.resid_pre", "names a head, and 'resid_pre' has none; leave out 'H3.'"),
        ("L0.z@3<-1", "which only pattern and attn_scores have"),
        ("L0.pattern@3#1", "'pattern' has none; write @9<-4"),
        ("z@-1", "needs a layer: write 'L0.z@-1' or 'L"),
    ],
)
def test_parts_that_a_name_cannot_have_are_errors(text, message):
    with pytest.raises(ValueError, match=message.replace("(", "\\(")) as error:
        Site.parse(text)
    assert f"'{text}'" in str(error.value)


def test_parts_the_text_form_could_not_say_are_errors():
    with pytest.raises(ValueError, match=r"layer is -1 in site 'L-1\.z'"):
        Site("z", layer=-1)
    for parts in ({"layer": "x"}, {"pos": "two words"}, {"index": "1:2"}, {"basis": "a]b"}):
        with pytest.raises(ValueError, match="write sites like"):
            Site("mlp_post", **{"layer": 0} | parts)


def test_a_full_hook_name_is_answered_with_the_site_to_write():
    with pytest.raises(ValueError, match=r"write 'L9\.z'"):
        Site.parse("blocks.9.attn.hook_z")
    with pytest.raises(ValueError, match="write 'ln_final'"):
        Site.parse("ln_final.hook_normalized")


FLAGS = {"use_attn_result": True, "use_split_qkv_input": True, "use_attn_in": True, "use_hook_mlp_in": True}
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 8, "gated_mlp": True, "normalization_type": "RMS"}


@pytest.mark.parametrize("changes", [FLAGS, ROTARY, {"n_layers": 11, "d_model": 8}])
def test_every_hook_of_a_model_is_the_hook_of_its_short_name(build, changes):
    hooks = [hook for hook in build(**changes).hook_dict if "unembed" not in hook]
    assert [Site.parse(short_name(hook)).hook for hook in hooks] == hooks
    assert len(hooks) > 40


SHORT_NAMES = (
    *("q", "k", "v", "z", "result", "pattern", "attn_scores", "rot_q", "rot_k", "attn_in", "q_input", "k_input"),
    *("v_input", "mlp_pre", "pre", "mlp_post", "post", "mlp_mid", "mid", "mlp_in", "attn_out", "mlp_out"),
    *("resid_pre", "resid_mid", "resid_post"),
)


@pytest.mark.parametrize("layer", [0, 9, 10, 123])
@pytest.mark.parametrize("name", SHORT_NAMES)
def test_hook_names_are_those_of_transformer_lens(name, layer):
    from transformer_lens.utilities import get_act_name

    assert Site.parse(f"L{layer}.{name}").hook == get_act_name(name, layer)


def test_hook_names_of_norms_and_of_sites_without_a_layer_are_those_of_transformer_lens():
    from transformer_lens.utilities import get_act_name

    for norm in ("ln1", "ln2"):
        for name in ("scale", "normalized"):
            assert Site.parse(f"L12.{norm}.{name}").hook == get_act_name(name, 12, norm)
    assert Site.parse("embed").hook == get_act_name("embed")
    assert Site.parse("pos_embed").hook == get_act_name("pos_embed")
    assert Site.parse("ln_final").hook == get_act_name("normalized")
    assert Site.parse("ln_final.scale").hook == get_act_name("scale")


def test_a_hook_name_needs_one_layer():
    with pytest.raises(ValueError, match="expand it first"):
        _ = Site.parse("L*.z").hook
    with pytest.raises(ValueError, match=r"needs a layer: write 'L0\.resid_pre'"):
        _ = Site.parse("resid_pre").hook


def test_a_site_is_concrete_once_no_star_is_left():
    stars = ["L*.z", "L0.H*.z", "L0.z@*", "L0.pattern@1<-*", "L0.mlp_post#*"]
    assert not any(Site.parse(text).is_concrete for text in stars)
    assert Site.parse("L0.H1.z@-1").is_concrete


def test_at_changes_the_parts_it_names():
    assert Site.parse("L*.H2.z@-1").at(layer=3, pos="subject") == Site.parse("L3.H2.z@subject")

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mechkit.viz.result_figure import result_figure


def heads(n_layers=2, n_heads=4) -> tuple[pd.DataFrame, np.ndarray]:
    pairs = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    rows = pd.DataFrame(pairs, columns=["layer", "head"]).assign(pos=-1, name="z")
    return rows, np.random.default_rng(0).normal(size=len(rows))


def test_two_varying_axes_make_a_heatmap_with_each_value_in_its_place():
    rows, values = heads()
    figure = result_figure(rows, values, "logits", "Heads")
    (trace,) = figure.data
    assert trace.type == "heatmap"
    np.testing.assert_array_equal(trace.z, values.reshape(2, 4))
    assert (figure.layout.yaxis.title.text, figure.layout.xaxis.title.text) == ("layer", "head")
    assert trace.colorbar.title.text.startswith("logits")
    assert figure.layout.title.text == "Heads"


def test_the_order_of_the_rows_does_not_matter_to_a_heatmap():
    rows, values = heads()
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = result_figure(rows.iloc[order], values[order], "logits", "")
    np.testing.assert_array_equal(shuffled.data[0].z, values.reshape(2, 4))


def test_the_colour_scale_is_centred_on_zero():
    rows, values = heads()
    (trace,) = result_figure(rows, np.abs(values) + 1, "logits", "").data
    assert trace.zmin == -trace.zmax == -(np.abs(values) + 1).max()
    (trace,) = result_figure(rows, -np.abs(values) - 1, "logits", "").data
    assert trace.zmin == -trace.zmax == -(np.abs(values) + 1).max()


def test_a_pair_without_a_row_is_blank():
    rows, values = heads()
    (trace,) = result_figure(rows[:-1], values[:-1], "logits", "").data
    assert np.isnan(trace.z[1, 3])


def test_positions_carry_their_tokens():
    rows = pd.DataFrame({"layer": [0, 0, 1, 1], "pos": [0, 1, 0, 1], "token": ["<b>", "59"] * 2})
    figure = result_figure(rows, np.arange(4.0), "logits", "")
    assert list(figure.layout.xaxis.ticktext) == ["0: &lt;b&gt;", "1: 59"]


def test_other_rows_are_bars_of_the_largest_forty_in_order():
    rows = pd.DataFrame({"name": [f"L0.mlp_post#{at}" for at in range(60)], "index": range(60)})
    values = np.random.default_rng(0).normal(size=60)
    figure = result_figure(rows, values, "logits", "")
    (trace,) = figure.data
    assert trace.type == "bar"
    kept = sorted(range(60), key=lambda at: -abs(values[at]))[:40]
    expected = sorted(kept, key=lambda at: -values[at])
    assert list(figure.layout.yaxis.ticktext) == [f"L0.mlp_post#{at}" for at in expected]
    np.testing.assert_array_equal(trace.x, values[expected])
    assert figure.layout.xaxis.title.text == "logits"


def test_three_varying_axes_or_repeated_pairs_are_bars():
    rows, values = heads()
    three = rows.assign(pos=range(len(rows)))
    assert result_figure(three, values, "", "").data[0].type == "bar"
    twice = pd.concat([rows, rows], ignore_index=True)
    assert result_figure(twice, np.tile(values, 2), "", "").data[0].type == "bar"


def test_bars_with_equal_labels_stay_apart():
    rows = pd.DataFrame({"name": ["same", "same"], "token": ["a", "a"]})
    (trace,) = result_figure(rows, np.array([1.0, 2.0]), "", "").data
    assert list(trace.y) == [0, 1]


def test_rows_without_a_name_are_told_by_their_axes():
    rows = pd.DataFrame({"layer": [0, 1, 2], "token": [" x", None, "y"]})
    figure = result_figure(rows, np.array([3.0, 2.0, 1.0]), "", "")
    assert list(figure.layout.yaxis.ticktext) == ["layer 0 ‘ x’", "layer 1", "layer 2 ‘y’"]


def test_markup_in_texts_is_shown_as_text():
    figure = result_figure(pd.DataFrame({"name": ["<b>x</b>"]}), np.array([1.0]), "<i>", "<a href=x>")
    texts = [figure.layout.title.text, figure.layout.xaxis.title.text, *figure.layout.yaxis.ticktext]
    assert not any("<" in text for text in texts)
    rows = pd.DataFrame({"layer": [0, 0, 1, 1], "pos": [0, 1] * 2, "token": ["<b>", "x"] * 2})
    (trace,) = result_figure(rows, np.arange(4.0), "<i>", "").data
    assert "<b>" not in str(trace.text)
    assert "<i>" not in trace.colorbar.title.text


def test_a_figure_can_be_written_as_html():
    assert "plotly" in result_figure(*heads(), "logits", "").to_html(include_plotlyjs=False).lower()


@pytest.mark.parametrize("n_values", [0, 7])
def test_values_that_do_not_match_the_rows_are_an_error(n_values):
    with pytest.raises(ValueError, match=r"one value for each row; got \(\d,\) for 8 rows"):
        result_figure(heads()[0], np.zeros(n_values), "", "")


def test_plotly_is_imported_only_when_a_figure_is_drawn():
    code = "import sys, mechkit.viz.result_figure; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

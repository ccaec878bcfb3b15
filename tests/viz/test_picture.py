import numpy as np
import pandas as pd
import pytest

from mechkit.viz.picture import Bars, Heatmap, picture, shown, with_tokens


def by_position(n_layers=2, n_heads=3, n_pos=2):
    places = [(layer, head, pos) for layer in range(n_layers) for head in range(n_heads) for pos in range(n_pos)]
    rows = pd.DataFrame(places, columns=["layer", "head", "pos"])
    return rows, np.arange(float(len(rows)))


def test_heads_by_position_share_the_vertical_axis_with_their_layers():
    rows, values = by_position()
    drawn = picture(rows, values)
    assert isinstance(drawn, Heatmap)
    assert drawn.row_labels == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    np.testing.assert_array_equal(drawn.values, values.reshape(6, 2))


def test_three_axes_with_gaps_are_bars():
    rows, values = by_position()
    assert isinstance(picture(rows[:-1], values[:-1]), Bars)


def test_positions_take_their_tokens_counted_from_either_end():
    rows = with_tokens(pd.DataFrame({"pos": [0, -1, "subject", None, 7]}), ["35", "+", "59", "="])
    assert rows["token"].tolist() == ["35", "=", None, None, None]


def test_position_labels_are_place_and_token():
    rows = with_tokens(pd.DataFrame({"layer": [0, 0, 1, 1], "pos": [0, 1] * 2}), ["When", " Mary"])
    drawn = picture(rows, np.arange(4.0))
    assert isinstance(drawn, Heatmap)
    assert drawn.column_labels == ["0: When", "1: Mary"]


@pytest.mark.parametrize(("token", "text"), [(" to", "to"), ("\n", "⏎"), (" ", "␣"), ("", ""), ("a b", "a b")])
def test_a_token_of_nothing_but_space_is_still_seen(token, text):
    assert shown(token) == text


def test_the_scale_of_zeros_has_ends():
    rows, values = by_position()
    drawn = picture(rows, 0 * values)
    assert isinstance(drawn, Heatmap)
    assert drawn.limit == 1

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mechkit.viz.picture import with_tokens
from mechkit.viz.result_png import result_png


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return (imread(io.BytesIO(png)) * 255).round().astype(int)[..., :3]


def grid(n_layers=3, n_pos=4):
    return pd.DataFrame([(layer, pos) for layer in range(n_layers) for pos in range(n_pos)], columns=["layer", "pos"])


def count(image: np.ndarray, colour: str) -> int:
    """Pixels of nearly this colour: a colour map is drawn in 256 steps."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((abs(image - wanted).max(-1) <= 3).sum())


def test_blue_is_most_positive_red_most_negative_and_zero_is_paper():
    values = np.zeros(12)
    values[0], values[5] = 2.0, -2.0
    image = pixels(result_png(grid(), values, "logits", ""))
    blue, red, paper = (count(image, colour) for colour in ("#215a8c", "#a8402c", "#f7f5f0"))
    assert blue > 1000
    assert 0.9 < blue / red < 1.1  # one cell each
    assert 9 < paper / blue < 11


def test_the_first_layer_is_at_the_bottom_and_the_first_position_at_the_left():
    values = np.zeros(12)
    values[0] = 1.0
    image = pixels(result_png(grid(), values, "logits", ""))
    height, width, _ = image.shape
    assert count(image[height // 2 :, : width // 2], "#215a8c") > 1000
    assert count(image[: height // 2, : width // 2], "#215a8c") == 0


def test_labels_are_text_and_not_mathematics_or_boxes_that_warn():
    rows = with_tokens(grid(), ["$\\broken$", "\\frac{", "日本", "_"])
    assert result_png(rows, np.arange(12.0), "$\\broken$", "$\\broken$")[:4] == b"\x89PNG"


def test_other_rows_are_bars():
    rows = pd.DataFrame({"name": [f"L{i}.mlp_out@-1" for i in range(50)], "layer": range(50)})
    image = pixels(result_png(rows, np.linspace(-1, 1, 50), "logits", "bars"))
    assert count(image, "#215a8c") > 1000
    assert count(image, "#a8402c") > 1000


def test_a_large_picture_stays_a_picture():
    rows = grid(144, 16)
    height, width, _ = pixels(result_png(rows, np.random.default_rng(0).normal(size=len(rows)), "logits", "")).shape
    assert max(height, width) < 6000


def test_the_same_values_give_the_same_bytes():
    assert result_png(grid(), np.arange(12.0), "u", "t") == result_png(grid(), np.arange(12.0), "u", "t")


def test_values_that_do_not_match_the_rows_are_an_error():
    with pytest.raises(ValueError, match="one value for each row"):
        result_png(grid(), np.zeros(5), "", "")


def test_matplotlib_is_imported_only_when_a_picture_is_drawn_and_never_its_windows():
    code = "import sys, mechkit.viz.result_png as r; assert 'matplotlib' not in sys.modules\n"
    code += "import pandas as pd, numpy as np; r.result_png(pd.DataFrame({'layer': [0, 1]}), np.ones(2), '', '')\n"
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

import base64
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechkit.viz.heatmap_png import grey_png


def decode(uri: str) -> np.ndarray:
    """Pixels of an 8-bit greyscale PNG without row filters, every chunk's checksum checked."""
    raw = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(raw):
        (length,) = struct.unpack_from(">I", raw, at)
        name, data = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", raw, at + 8 + length)[0] == zlib.crc32(name + data)
        chunks[name] = data
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 0, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


@given(st.integers(1, 40), st.integers(1, 40), st.floats(1e-6, 1e6), st.integers(0, 99))
def test_the_picture_gives_the_values_back_to_half_a_step(height, width, scale, seed):
    values = np.random.default_rng(seed).random((height, width)) * scale
    uri, peak = grey_png(values)
    assert peak == values.max()
    # half of one 255th of the peak, and the rounding of the division
    np.testing.assert_allclose(decode(uri) / 255 * peak, values, rtol=0, atol=peak / 510 * (1 + 1e-9))


def test_rows_stay_rows():
    assert decode(grey_png(np.array([[0.0, 1.0, 2.0], [4.0, 0.0, 0.0]]))[0]).tolist() == [[0, 64, 128], [255, 0, 0]]


def test_all_zeros_are_black_with_peak_zero():
    uri, peak = grey_png(np.zeros((2, 3)))
    assert peak == 0
    assert decode(uri).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_an_operand_plot_takes_little_room():
    a, b = np.mgrid[:100, :100]
    assert len(grey_png(np.exp(-((a + b - 94) ** 2) / 60))[0]) < 2_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), r"two axes.*\(3,\)"),
        (np.zeros((0, 4)), r"non-empty; got shape \(0, 4\)"),
        (np.array([[-1.0]]), "at least 0; got -1"),
        (np.array([[np.nan, 1]]), "finite"),
    ],
)
def test_what_is_no_heatmap_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        grey_png(values)

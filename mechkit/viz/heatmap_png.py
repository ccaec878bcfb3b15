"""A heatmap as a tiny picture: 8-bit greyscale PNG in a data URI, no imaging library needed.

>>> import numpy as np
>>> uri, peak = grey_png(np.array([[0.0, 1.0], [2.0, 4.0]]))
>>> uri[:22], peak
('data:image/png;base64,', 4.0)
"""

import base64
import struct
import zlib

import numpy as np


def grey_png(values: np.ndarray) -> tuple[str, float]:
    """PNG data URI of `values[row, column]` (finite, at least 0) and their maximum.

    A pixel is the value in 255ths of the maximum, rounded, so value = pixel / 255 * maximum to within
    maximum / 510. All zeros give a maximum of 0. Raises ValueError for other shapes or values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"a heatmap has two axes, both non-empty; got shape {values.shape}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(f"a heatmap holds finite numbers of at least 0; got {values.min():g} to {values.max():g}")
    peak = float(values.max())
    pixels = np.rint(values * (255 / peak if peak else 0)).astype(np.uint8)
    height, width = pixels.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), pixels])  # each scan line starts with filter type 0
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")
    png = b"\x89PNG\r\n\x1a\n" + chunks
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii"), peak


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

"""The picture of a graph: drawn for any document, at most so much, and no text read as markup."""

import io

import numpy as np
import pytest
from graph_payloads import bare_payload, evil_payload, large_payload, small_payload
from matplotlib.image import imread

from mechkit.graphs.files.saved import SavedGraph
from mechkit.viz.graph_png import graph_png


def picture(document: dict) -> np.ndarray:
    return imread(io.BytesIO(graph_png(SavedGraph(document).document)))[..., :3]


@pytest.mark.parametrize("make", [bare_payload, small_payload, large_payload, evil_payload])
def test_any_graph_is_drawn(make):
    pixels = picture(make())
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 1000
    assert (pixels < 0.9).any(-1).mean() > 0.003


def test_a_class_has_its_colour():
    document = small_payload()
    orange = [213 / 255, 94 / 255, 0]
    lookups = [n for n, node in document["mechkit"]["nodes"].items() if node.get("class") == "ones-digit lookup"]
    close = lambda pixels: (np.abs(pixels - orange) < 0.02).all(-1).sum()  # noqa: E731
    assert close(picture(document)) > 200
    for name in lookups:
        document["mechkit"]["nodes"][name]["class"] = "sum"
    assert close(picture(document)) == 0


def test_the_same_document_gives_the_same_picture():
    assert graph_png(SavedGraph(small_payload()).document) == graph_png(SavedGraph(small_payload()).document)

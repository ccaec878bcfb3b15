"""The page of a figure: self-contained, and text stays text. In a browser where there is one."""

import numpy as np
import pandas as pd
import pytest
from browser import find_chromium, probe

from mechkit.viz.figure_page import figure_page
from mechkit.viz.picture import with_tokens
from mechkit.viz.result_figure import result_figure

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def page(text: str) -> str:
    rows = with_tokens(pd.DataFrame({"layer": [0, 0, 1, 1], "pos": [0, 1] * 2}), [text, "b"])
    figure = result_figure(rows, np.arange(4.0), text, text)
    return figure_page(figure, text, [(text, text)], ["site", text], [[text, "1"]])


def test_text_of_prompts_never_becomes_markup():
    made = page(HOSTILE)
    assert made.count("<script>alert") == 0
    assert "<img" not in made
    assert made.count("</script>") == page("harmless").count("</script>")


def test_a_page_without_a_table_has_none():
    figure = result_figure(pd.DataFrame({"layer": [0, 1]}), np.ones(2), "", "")
    assert "<table" not in figure_page(figure, "t")


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")
def test_the_page_draws_its_figure_makes_no_request_and_runs_nothing_of_its_text(tmp_path):
    # The probe adds hashes to the policy, which would switch off the page's 'unsafe-inline'.
    made = page(HOSTILE).replace("script-src ", "script-src-elem 'unsafe-inline'; script-src ", 1)
    script = """
    return {cells: document.querySelectorAll('.heatmaplayer image').length,
            labels: [...document.querySelectorAll('.xtick text')].map((tick) => tick.textContent),
            images: document.querySelectorAll('img').length,
            requests: performance.getEntriesByType('resource').map((entry) => entry.name)};
    """
    seen = probe(made, tmp_path, script)
    assert seen["seen"] == {"errors": [], "violations": []}
    assert (seen["cells"], seen["images"]) == (1, 0)
    assert seen["labels"][1] == "1: b"
    assert [name for name in seen["requests"] if not name.startswith("data:")] == []

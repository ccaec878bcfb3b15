"""A browser for the tests of pages, and pages that must meet no trouble."""

import pytest

from mechkit.graphs.files.saved import SavedGraph
from tests.viz.driver import Browser, opened


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = Browser(tmp_path_factory.mktemp("browser"))
    yield running
    running.close()


@pytest.fixture
def show(browser, tmp_path):
    """Open the page of a document; closed, and checked to have met no trouble and asked for nothing, afterwards."""
    pages = []

    def open_page(document: dict, *, width: int = 1440, fragment: str = ""):
        path = SavedGraph(document).to_html(tmp_path / f"page{len(pages)}.html")
        held = opened(browser, path, width=width, fragment=fragment)
        pages.append((held, held.__enter__()))
        return pages[-1][1]

    yield open_page
    for held, page in pages:
        troubles, requests = page.troubles, page.requests
        held.__exit__(None, None, None)
        assert (troubles, requests) == ([], [])

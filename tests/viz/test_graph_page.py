import copy
import html
import json
import re
from html.parser import HTMLParser

import pytest
from graph_payloads import EVIL, evil_payload, large_payload, small_payload

from mechkit.viz.graph_page import render_graph_page


class Tags(HTMLParser):
    """Tags of a page as a browser's parser meets them, and the text of its data block."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.data = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][1].get("id") == "payload":
            self.data += data


def empty(prompt: str = "", tokens: tuple | list = ()) -> dict:
    """The document of a graph without nodes."""
    metadata = {"slug": "", "scan": "", "prompt": prompt, "prompt_tokens": list(tokens)}
    return {"metadata": metadata, "nodes": [], "links": []}


@pytest.fixture(scope="module", params=[small_payload, large_payload, evil_payload])
def payload(request):
    return request.param()


def test_the_page_carries_its_payload_unchanged(payload):
    assert json.loads(Tags(render_graph_page(payload)).data.strip()) == payload


def test_the_data_block_holds_no_sign_that_html_reads(payload):
    block = render_graph_page(payload).split('<script type="application/json" id="payload">')[1]
    assert not re.search("[<>&]", block[: block.index("</script>\n")])


def test_the_page_has_no_tag_from_the_payload(payload):
    plain = Tags(render_graph_page(empty()))
    assert [tag for tag, _ in Tags(render_graph_page(payload)).tags] == [tag for tag, _ in plain.tags]


def test_the_page_names_nothing_outside_itself(payload):
    page = render_graph_page(payload)
    attributes = [attrs for _, attrs in Tags(page).tags]
    assert not [attrs for attrs in attributes if attrs.keys() & {"src", "href", "action", "data"}]
    code = page.split('<script type="application/json"')[0] + page.rsplit("<script>", 1)[1]
    assert set(re.findall(r"https?://[^\s\"']+", code)) <= {
        "http://www.w3.org/1999/xhtml",
        "http://www.w3.org/2000/svg",
    }
    assert not re.search(r"\beval\(|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write", page)


def test_the_policy_forbids_all_but_the_pages_own_script_and_style():
    page = render_graph_page(small_payload())
    policy = next(
        attrs["content"] for _, attrs in Tags(page).tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_title_is_escaped():
    assert f"<title>{html.escape(EVIL[0])} ·" in render_graph_page(evil_payload())


def test_placeholders_in_the_payload_stay_text():
    page = render_graph_page(empty("{{script}}", ["{{style}}"]))
    assert "<title>{{script}} ·" in page
    assert '"prompt_tokens":["{{style}}"]' in page


def test_the_same_payload_gives_the_same_page():
    assert render_graph_page(small_payload()) == render_graph_page(small_payload())


def test_the_payload_is_not_changed():
    payload = small_payload()
    before = copy.deepcopy(payload)
    render_graph_page(payload)
    assert payload == before


def test_a_document_that_is_no_plain_data_is_an_error():
    document = small_payload()
    document["mechkit"]["made"] = {"model": object()}
    with pytest.raises(ValueError, match="must be plain JSON data"):
        render_graph_page(document)

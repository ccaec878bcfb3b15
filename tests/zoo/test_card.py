"""Scores are put between a card's marks, and nothing else of it changes."""

import pytest

from mechkit.zoo.card import fill_card


def test_scores_take_the_place_of_the_old_ones_and_other_parts_stay(tmp_path):
    template, folder = tmp_path / "template.md", tmp_path / "out"
    folder.mkdir()
    template.write_text("before\n<!-- saes -->\nold\n<!-- end of saes -->\n<!-- scores -->kept<!-- end of scores -->\n")
    fill_card(template, folder, "facts 0.99", "saes")
    assert (folder / "card.md").read_text() == (
        "before\n<!-- saes -->\n```\nfacts 0.99\n```\n<!-- end of saes -->\n<!-- scores -->kept<!-- end of scores -->\n"
    )


@pytest.mark.parametrize("text", ["no marks", "<!-- end of scores -->", "<!-- scores --> open"])
def test_a_card_without_both_marks_is_an_error_and_nothing_is_written(tmp_path, text):
    (tmp_path / "template.md").write_text(text)
    with pytest.raises(ValueError, match=r"lacks the mark <!-- (end of )?scores -->"):
        fill_card(tmp_path / "template.md", tmp_path, "facts 0.99")
    assert not (tmp_path / "card.md").exists()

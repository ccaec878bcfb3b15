"""Model cards: a text with measured scores between two marks, `<!-- scores -->` and `<!-- end of scores -->`."""

from pathlib import Path

from mechkit.core.files import write_atomic

CARD = "card.md"
"""What a model folder's card is called."""


def fill_card(template: Path, folder: Path, scores: str, part: str = "scores") -> None:
    """Write the card `template` into `folder`, with `scores` as a block between the marks of `part`.

    What stood between the marks goes. Raises ValueError where the template lacks one of the two marks.
    """
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    before, found, rest = template.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"'{template}' lacks the mark {end if found else begin}; scores are put between the two")
    write_atomic(folder / CARD, f"{before}{begin}\n```\n{scores}\n```\n{end}{after}")

"""A page inside a notebook: a frame that holds the page itself, so that it works offline and cannot reach the notebook.

>>> PageView("<p>hello</p>", 300)._repr_html_()[:7]
'<iframe'
"""

import html
from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class PageView:
    """A page that a notebook shows as the last value of a cell, or through IPython's `display`; no IPython needed."""

    page: str
    """The page's HTML, self-contained."""
    height: int
    """Height of the frame, in pixels."""

    def _repr_html_(self) -> str:
        """The frame. Its page may run its own scripts and save files; it has no access to the notebook."""
        style = f"width: 100%; height: {self.height}px; border: 0; border-radius: 8px"
        about = f'sandbox="allow-scripts allow-downloads" title="Attribution graph" style="{style}"'
        return f'<iframe srcdoc="{html.escape(self.page)}" {about}></iframe>'

    def __repr__(self) -> str:
        return f"a page of {len(self.page) / 1e6:.1f} MB, shown by a notebook; write it to a file with to_html(path)"

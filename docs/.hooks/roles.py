"""Names in docstrings are written as Sphinx has them, :class:`~package.Name`; the site shows them as code."""

import re


def on_page_content(html: str, **_more) -> str:
    """Called by MkDocs with what a page has become."""
    return re.sub(r":\w+:<code>~?(?:[\w.]*\.)?(\w+)</code>", r"<code>\1</code>", html)

"""Settings of Sphinx. `python -m sphinx -n -W docs build/docs` builds the pages of this folder."""

import re
from pathlib import Path

from sphinx.application import Sphinx

project = "taskflow"
author = "The taskflow developers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]

html_theme = "furo"
html_title = "taskflow"

myst_heading_anchors = 4

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
# Only `taskflow` and its public names have an entry in the reference. Types of other libraries and of inner modules have none.
nitpick_ignore_regex = [(r"py:.*", r"(?!taskflow\.\w+$).*")]
suppress_warnings = ["ref.python"]  # in an annotation, `type` could be an attribute of that name, which several classes have


def link_files_outside(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to Markdown files outside this folder lead to the file: they aren't pages here, but GitHub shows them."""
    folder = Path(app.env.doc2path(page)).parent

    def linked(found: re.Match[str]) -> str:
        inside = (folder / found[1]).resolve().is_relative_to(app.srcdir)
        return found[0] if inside else f"](path:{found[1]})"

    source[0] = re.sub(r"\]\(((?:\.\./)+[\w./-]+\.md)(?:#[\w-]+)?\)", linked, source[0])


def list_names(app: Sphinx, kind: str, name: str, what: object, options: object, lines: list[str]) -> None:
    """Make a definition list of the lines "`name`  its meaning", which docstrings align for those who read the source."""
    listed: list[str] = []
    for line in lines:
        found = re.match(r"(`\w+`(?:, `\w+`)*) {2,}(?=\S)", line)
        listed += [found[1], f"    {line[found.end() :]}"] if found else [re.sub(r"^ {5,}", "    ", line)]
    lines[:] = listed


def hide_constructor(app: Sphinx, kind: str, name: str, what: object, options: object, signature: str | None, returned: str | None):
    """Leave out the parameters of classes that users do not make themselves."""
    is_inner = kind == "class" and (signature or "").startswith(("(app:", "(job:", "(lease:", "(envelope:"))
    return ("", "") if is_inner else (signature, returned)


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_files_outside)
    app.connect("autodoc-process-docstring", list_names)
    app.connect("autodoc-process-signature", hide_constructor)

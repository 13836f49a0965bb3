"""Settings of Sphinx. `python -m sphinx -n -W docs build/docs` builds the pages of this folder."""

import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

project = "taskflow"
author = "The taskflow developers"
copyright = "the taskflow developers, MIT license"
release = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]

html_theme = "furo"
html_title = f"taskflow {release}"
html_show_sphinx = False
smartquotes = False  # they change quotes and dashes of commands that stand in sentences

myst_heading_anchors = 4

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
# Only `taskflow` and its public names have an entry in the reference. Types of other libraries and of inner modules have none.
nitpick_ignore_regex = [(r"py:.*", r"(?!taskflow\.\w+$).*")]
suppress_warnings = ["ref.python"]  # in an annotation, `type` could be an attribute of that name, which several classes have


PAGES_OF = {
    "CHANGELOG.md": "project/changelog.md",
    ".github/CONTRIBUTING.md": "project/contributing.md",
    ".github/SECURITY.md": "project/security-policy.md",
    "benchmarks/README.md": "project/benchmarks.md",
}
"""The files outside this folder that are pages here too."""


def link_files_outside(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to Markdown files outside this folder lead to their pages here. GitHub follows the links themselves."""
    root, folder = Path(app.srcdir).parent, Path(app.env.doc2path(page)).parent

    def linked(found: re.Match[str]) -> str:
        file = (folder / found[1]).resolve()
        inner = None if file.is_relative_to(app.srcdir) else PAGES_OF[str(file.relative_to(root))]
        return found[0] if inner is None else f"](/{inner}{found[2] or ''})"

    source[0] = re.sub(r"\]\(((?:\.\./)+[\w./-]+\.md)(#[\w-]+)?\)", linked, source[0])


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

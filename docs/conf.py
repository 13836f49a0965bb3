"""Settings of Sphinx. `python -m sphinx -n -W docs build/docs` builds the pages of this folder."""

import inspect
import re
import tomllib
import typing
from itertools import cycle
from pathlib import Path
from typing import Any

from msgspec.structs import asdict
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import taskflow
from taskflow.app import options
from taskflow.app.job_type import JobType
from taskflow.model import schedule_plan

project = "taskflow"
author = "The taskflow developers"
release = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
copyright = f"the taskflow developers. Version {release}, MIT license"
extensions = ["myst_parser", "sphinx.ext.autodoc"]

html_theme = "furo"
html_title = f"taskflow {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
smartquotes = False  # they change quotes and dashes of commands that stand in sentences

myst_heading_anchors = 4

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Connection": "Connection"}  # a union of the classes of all database libraries
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
# Only `taskflow` and its public names have an entry in the reference. Types of other libraries and of inner modules have none.
nitpick_ignore_regex = [(r"py:.*", r"(?!taskflow\.\w+$).*")]


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
    source[0] = re.sub(r"\[(`\w+`)\]\((?:\.\./)+tests/[\w/]+\.py\)", r"\1", source[0])  # tests are no pages: the name remains


NAMED = re.compile(r"(`\w+`(?:, `\w+`)*)(?: {2,}(?=\S)|$)", re.MULTILINE)
"""A line "`name`  its meaning" of a docstring, which aligns such lines for those who read the source."""


def list_names(app: Sphinx, kind: str, name: str, value: object, asked: dict[str, Any], lines: list[str]) -> None:
    """Make a definition list of the names that a docstring lists. Fields that have entries on the page get their meanings there instead."""
    if kind == "attribute" and not lines:
        owner, _, field = name.rpartition(".")
        lines += meanings(getattr(taskflow, owner.removeprefix("taskflow."), None)).get(field, [])
        return
    has_entries = kind == "class" and "members" in asked
    moved = meanings(value) if has_entries else {}
    listed: list[str] = []
    is_moved = False
    for line in lines:
        found = NAMED.match(line)
        is_moved = bool(found and found[1].strip("`") in moved) or (is_moved and line.startswith("  "))
        if not is_moved:
            meaning = line[found.end() :] if found else None
            listed += [re.sub(r"^ {5,}", "    ", line)] if found is None else [found[1], *([f"    {meaning}"] if meaning else [])]
    lines[:] = listed


def meanings(kind: object) -> dict[str, list[str]]:
    """Return the lines that the docstring of a class has about each of its fields."""
    fields = getattr(kind, "__annotations__", {})
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (inspect.getdoc(kind) or "").splitlines():
        if start := NAMED.match(line):
            lines = [line[start.end() :]]
            found[start[1].strip("`")] = lines
        elif line.startswith("  "):
            lines.append(line.strip())
    return {name: text for name, text in found.items() if name in fields}


MADE_BY_USERS = {
    *("Access", "Backoff", "Batch", "Concurrency", "Cron", "Every", "Failure", "Limit", "Rate", "Worker"),
    *("Cancel", "Discard", "RateLimited", "Retry", "Snooze"),
    *("Succeeded", "Failed", "Discarded", "Cancelled", "Retried", "Snoozed", "Parked", "HandedBack", "Completed"),
}
"""The classes whose constructors users call. taskflow makes the instances of all others."""

INTERNAL = [
    *(JobType.around, JobType.policy, JobType.queues, JobType.stop_grace),
    *(JobType.arguments_beside, JobType.decoded_arguments, JobType.named_arguments),
    *(taskflow.ActionResult.of, taskflow.Call.stamped, taskflow.EnqueueCall.to_envelope, taskflow.RunError.of_run),
]
"""Methods and properties without an underscore that modules of taskflow call, and users need not."""


def skip_internals(app: Sphinx, kind: str, name: str, member: object, is_skipped: bool, asked: object) -> bool | None:
    return True if any(member is each for each in INTERNAL) else None


def write_signature(app: Sphinx, kind: str, name: str, value: Any, asked: object, given: str | None, returned: str | None) -> Any:
    """Show the options that `job` and the dicts of options have, which Python sees as **kwargs. Hide constructors that users don't call."""
    if value is taskflow.job:
        return f"(function: Callable, /, {signature_of(options.BatchJobOptions, value.__doc__, DEFAULTS)})", None
    if value is taskflow.group:
        return '(calls: Iterable[Call[R] | Flow[R]], *, failures: Literal["cancel", "collect"] = "cancel")', "Group[R]"
    if typing.is_typeddict(value):
        return f"({signature_of(value, value.__doc__, {})})", None
    if given and kind in ("class", "exception") and value.__name__ not in MADE_BY_USERS:
        return "", ""
    return (given or "").replace("BareCall", "Call") or given, returned  # the class that users have


for dictionary in (taskflow.DefaultOptions, taskflow.EnqueueOptions, taskflow.JobSelection):
    setattr(dictionary, "__signature__", inspect.Signature())  # noqa: B010  # else autodoc does not ask for one


def signature_of(kind: Any, docstring: str | None, defaults: dict[str, Any]) -> str:
    """Return the options of a dict as keyword-only parameters, in the order in which the docstring lists them."""
    order = [name for found in NAMED.finditer(inspect.cleandoc(docstring or "")) for name in re.findall(r"\w+", found[1])]
    written = []
    for name in sorted(kind.__annotations__, key=lambda name: order.index(name) if order else 0):
        source = kind.__annotations__[name].__forward_arg__.removesuffix(" | None")
        of_type = re.sub(r"Required\[\w+\]|\w+", lambda word: ALIASES.get(word[0], word[0]), source)
        written.append(f"{name}: {of_type} = {defaults.get(name)}" if defaults else f"{name}: {of_type}")
    return f"*, {', '.join(written)}"


def literal(alias: Any) -> str:
    return f"Literal[{', '.join(map(repr, typing.get_args(alias)))}]"


ALIASES = {
    "Around": "Callable[[JobContext], AbstractContextManager | AbstractAsyncContextManager]",
    "BoundCall": "Call",
    "CatchUp": literal(schedule_plan.CatchUp),
    "Conflict": literal(options.Conflict),
    "KeyScope": literal(options.KeyScope),
    "Overlap": literal(schedule_plan.Overlap),
    "Required[Batch]": "Batch",
    "RetryFunction": "Callable[[int, Exception], float | timedelta | None]",
    "RunsIn": literal(options.RunsIn),
    "Timetable": "Cron | Every",
}
"""Names of types that only taskflow's code has, and what they stand for."""

DEFAULTS = {
    **{
        name: repr(default)
        for each in (options.Options(), options.Policy())
        for name, default in asdict(each).items()
        if default not in (None, (), {})
    },
    "retry": "Backoff()",
    "retry_on": "(Exception,)",
    "on_conflict": "'keep'",
    "overlap": "'allow'",
    "catch_up": "'latest'",
}
"""The defaults of the options of `job`. None means "not given"."""


def hide_private_bases(app: Sphinx, name: str, value: type, asked: object, bases: list[type]) -> None:
    """Let an error that derives from an internal class show that class's base."""
    bases[:] = [each.__mro__[1] if getattr(each, "__module__", "") == "taskflow.app.context" else each for each in bases]


def unlink_type(app: Sphinx, doctree: Any) -> None:
    """Leave `type` in annotations without a link: Sphinx would take it for an attribute of that name."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link["reftarget"] == "type":
            link.replace_self(addnodes.desc_sig_name("", "type"))


def name_columns(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Let each cell name its column, which `narrow.css` shows on phones. A table of many columns scrolls there instead."""

    def named(found: re.Match[str]) -> str:
        columns = [re.sub(r"<[^>]+>", "", head).strip() for head in re.findall(r"<th\b[^>]*>(.*?)</th>", found[0], re.DOTALL)]
        if not 1 < len(columns) <= MAX_STACKED_COLUMNS:
            return found[0]
        labels = cycle(columns if len(columns) > 2 else ["", ""])
        cells = re.sub(r"<td\b[^>]*>", lambda cell: f'{cell[0][:-1]} data-column="{next(labels)}">', found[0])
        empty = re.sub(r"(<td\b[^>]*)>(\s*(?:<p>\s*</p>)?\s*</td>)", r"\1 data-is-empty>\2", cells)
        return empty.replace('<table class="', '<table class="stacks ', 1)

    body = context.get("body", "").replace(' download=""', "")  # a browser shows pictures and JSON
    context["body"] = re.sub(r"<table\b.*?</table>", named, body, flags=re.DOTALL)


MAX_STACKED_COLUMNS = 6


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_files_outside)
    analyzer = ModuleAnalyzer.for_module(taskflow.group.__module__)
    analyzer.analyze()
    analyzer.overloads.pop("group")  # autodoc would list them, with types that only taskflow's code has
    app.connect("autodoc-process-docstring", list_names)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-process-bases", hide_private_bases)
    app.connect("autodoc-skip-member", skip_internals)
    app.connect("doctree-read", unlink_type)
    app.connect("html-page-context", name_columns)

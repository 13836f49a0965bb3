"""Words that we do not use, and why. Most are correct, but read as translated."""

from __future__ import annotations

from typing import Final

PHRASES: Final = {
    r"\bshall\b": "archaic: the present tense states what a program does, and `must` what a user has to do",
    r"\blest\b": "archaic: write `so that ... not`",
    r"\bof (?:its|their|his|your|our|my) own\b": "vague: name the relation, as in `a separate thread` or `your code`",
    r"\b(?:come|comes|came) to\b(?! \d)": "vague: name the result, as in `the outcome is` or `the total is`",
    r"\b(?:be|is|are|was|been|being) told\b(?! apart)": "hides the actor and the medium: write `the worker logs` or `delay() raises`",
    r"\btold of\b": "hides the actor and the medium: write `the log names`",
    r"\b(?:go|goes|went) home\b": "a figure of speech: write `exits`",
    r"\bnone when none\b": "cryptic: write the default, as in `(default None: no limit)`",
    r"\banew\b": "archaic: write `again`, or `a new ...`",
    r"\b(?:no|some|any)body\b": "hides the actor: name it, as in `no worker` or `another program`",
    r"\b(?:whoever|whichever of)\b": "hides the actor: name it, as in `the caller that ...`",
    r"\blikewise\b": "archaic: write `also`, or repeat the fact",
    r"\bgo(?:es)? on\b": "vague: write `continues`, `still runs` or `works as before`",
    r"\bby the thousand\b": "a figure of speech: write `thousands of ...`",
    r"\bin silence\b": "write `without an error` or `without a message`",
}

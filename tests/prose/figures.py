"""How long the sentences are, and which unwanted phrases they have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import fmean

from tests.prose.phrases import PHRASES
from tests.prose.sentences import words


@dataclass(frozen=True)
class Figures:
    """`mean` leaves out what has less than four words: cells of tables, and labels."""

    count: int
    mean: float
    longest: int
    too_long: int
    phrases: int

    def __str__(self) -> str:
        return (
            f"{self.count} sentences, mean {self.mean:.1f} words, longest {self.longest}, {self.too_long} above 35, {self.phrases} phrases"
        )


MAX_WORDS = 35
HIGHEST_MEAN = 18.0


CHOPPY_WORDS, CHOPPY_RUN = 8, 3


def figures(sentences: list[str]) -> Figures:
    lengths = [words(sentence) for sentence in sentences]
    return Figures(
        count=len(lengths),
        mean=fmean(length for length in lengths if length > 3),
        longest=max(lengths),
        too_long=len(too_long(sentences)),
        phrases=len(with_phrases(sentences)),
    )


def too_long(sentences: list[str]) -> list[str]:
    return [sentence for sentence in sentences if words(sentence) > MAX_WORDS]


def choppy(paragraphs: list[list[str]]) -> list[str]:
    """Return the sentences of each paragraph that are short one after another: what belongs together reads better in one sentence."""
    found = []
    for paragraph in paragraphs:
        for end in range(CHOPPY_RUN, len(paragraph) + 1):
            run = paragraph[end - CHOPPY_RUN : end]
            if all(words(sentence) <= CHOPPY_WORDS for sentence in run):
                found.append(" ".join(run))
    return found


def with_phrases(sentences: list[str]) -> list[str]:
    """Return each unwanted phrase with its sentence and the reason."""
    return [
        f"{found[0]!r} ({why}): {sentence}"
        for sentence in sentences
        for phrase, why in PHRASES.items()
        if (found := re.search(phrase, sentence, re.IGNORECASE))
    ]

"""Print the figures of each kind of prose: `python -m tests.prose`; with the name of a kind, also the sentences to mend."""

import sys

from tests.prose.figures import choppy, figures, too_long, with_phrases
from tests.prose.sentences import PAGES, SOURCES, paragraphs_of

for name, read in SOURCES.items():
    sentences = read()
    print(f"{name}: {figures(sentences)}")
    if name in sys.argv[1:]:
        print(*too_long(sentences), *with_phrases(sentences), sep="\n  ")
if "docs" in sys.argv[1:]:
    print(*(run for page in PAGES for run in choppy(paragraphs_of(page))), sep="\n  ")

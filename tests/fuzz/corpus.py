"""Files that are replayed on each run and that mutations start from.

A file that ever made a test of this folder fail is kept here, under a name that says what was wrong.
"""

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
IMAGES = sorted((CORPUS / "images").glob("*/*"))
PICKLES = sorted((CORPUS / "pickles").glob("*/*"))
REQUESTS = sorted((CORPUS / "requests").glob("*/*.http"))


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"

"""Pack wheels and sources into one folder that runs on a GPU machine without a package registry.

The machine has Python, torch, transformers and what they bring; ``PRESENT`` in packing.py lists it. Copy the folder
there and run ``python3 OUT/run.py --results RESULTS``.
"""

import argparse
from pathlib import Path

from .packing import pack


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--python", default="3.12", help="version of the machine's Python")
    arguments = parser.parse_args()
    size = pack(arguments.out, arguments.python)
    print(f"packed {size / 2**20:.1f} MiB into {arguments.out}; next: python3 {arguments.out}/run.py --results RESULTS")


if __name__ == "__main__":
    main()

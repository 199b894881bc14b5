"""``make image`` and ``make image-test``."""

import argparse
import sys

from .building import STAND_IN, build, name_of
from .checking import check
from .engine import Engine


def main() -> None:
    """Build an image, or check one that was built; exits with 1 if a check fails."""
    parser = argparse.ArgumentParser(prog="python -m tools.image", description=__doc__)
    parser.add_argument("command", choices=["build", "check"])
    parser.add_argument("--target", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--base", help=f"base image; {STAND_IN} makes one of Debian packages, without a registry")
    arguments = parser.parse_args()
    engine = Engine.find()
    if arguments.command == "build":
        build(engine, arguments.target, arguments.base)
        print(f"built {name_of(arguments.target)} with {engine}")
    else:
        sys.exit(check(engine, name_of(arguments.target), arguments.target))


if __name__ == "__main__":
    main()

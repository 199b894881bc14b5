"""Writes the dashboard into the chart, from which docker-compose takes it too."""

from pathlib import Path

from .grafana import dashboard
from .rows import ROWS

FILE = Path(__file__).parents[2] / "helm/jrm/files/dashboard.json"


def main() -> None:
    """Write the file."""
    FILE.write_text(dashboard(ROWS), encoding="utf-8")
    print(f"wrote {FILE.relative_to(Path.cwd()) if FILE.is_relative_to(Path.cwd()) else FILE}")


if __name__ == "__main__":
    main()

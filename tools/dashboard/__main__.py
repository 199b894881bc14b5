"""Write the dashboard where the chart and docker-compose take it from."""

from pathlib import Path

from .grafana import dashboard
from .rows import ROWS

FILE = Path(__file__).parents[2] / "helm/jrm/files/dashboard.json"


def main() -> None:
    """Write it anew."""
    FILE.write_text(dashboard(ROWS), encoding="utf-8")
    print(f"wrote {FILE.relative_to(Path.cwd()) if FILE.is_relative_to(Path.cwd()) else FILE}")


if __name__ == "__main__":
    main()

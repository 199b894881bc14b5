"""What `make dist` built, installed and used the way a stranger would: outside of the checkout, in a fresh environment.

For the wheel, then for the source distribution: the base install scores through a server that the same environment runs
once `[service]` is there. Prints a line for each; raises CalledProcessError with what a command printed.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
SCENE = ROOT / "examples/scene"
PAIR = [SCENE / "source.png", SCENE / "recoloured.png", "-i", "make the red square blue"]


def try_out(archive: Path, constraints: Path, folder: Path) -> None:
    """Install one archive into ``folder`` and score with it."""
    venv.create(folder, with_pip=True)

    def run(program: str, *arguments: object) -> str:
        command = [str(folder / "bin" / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
            done.check_returncode()
        return done.stdout

    def install(extra: str = "") -> None:
        run("python", "-m", "pip", "--quiet", "install", "--constraint", constraints, f"{archive}{extra}")

    install()
    run("python", "-c", "import jrm_client, sys; assert 'torch' not in sys.modules")
    print(f"{archive.name}: the client is installed", flush=True)
    install("[service]")
    server = subprocess.Popen(
        [folder / "bin" / "jrm", "serve", "--port", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        starting = next((line for line in server.stdout if line.startswith("starting on ")), None)
        if starting is None:
            raise subprocess.CalledProcessError(server.wait(), server.args)
        url = starting.split()[2]
        _wait_until_ready(server, url)
        [score] = json.loads(run("jrm", "score", *PAIR, "--url", url, "--json"))["scores"]
        print(f"{archive.name}: served, it gives {score['reward']:.4f}", flush=True)
    finally:
        server.terminate()
        server.communicate(timeout=60)


def _wait_until_ready(server: subprocess.Popen[str], url: str) -> None:
    """Return when the model is loaded. Raises CalledProcessError when the server has ended instead."""
    while server.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        time.sleep(0.5)
    raise subprocess.CalledProcessError(server.returncode, server.args)


def main() -> None:
    """Try each archive in the folder named first on the command line, with the constraints named second."""
    folder, constraints = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    [wheel], [source] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    for archive in (wheel, source):
        with tempfile.TemporaryDirectory() as environment:
            try_out(archive, constraints, Path(environment))


if __name__ == "__main__":
    main()

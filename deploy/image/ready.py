"""The health check of the images, which have no curl: status 0 when the server in this container is ready, else 1."""

import http.client
import os
import sys


def main() -> None:
    """Ask /health/ready, past any proxy that the environment names."""
    server = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("JRM_PORT") or 8000), timeout=4)
    try:
        server.request("GET", "/health/ready")
        status = server.getresponse().status
    except OSError as error:
        sys.exit(f"no answer: {error}")
    sys.exit(status != 200)


if __name__ == "__main__":
    main()

"""Before Ray is imported: nobody else on this machine is to run programs through the one that these tests start."""

import os
import secrets

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

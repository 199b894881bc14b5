"""Before Ray is imported: nobody else is to run programs through the one that these tests start, or start another."""

import os
import secrets

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

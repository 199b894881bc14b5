"""The certificates that servers are checked against: SSL_CERT_FILE, else SSL_CERT_DIR, else those of certifi."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path

import httpx

# How OpenSSL finds a certificate in a folder: by a hash of its name.
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")


def context(*, needed: bool) -> ssl.SSLContext:
    """Return the TLS context of a client's connections, which checks certificates and names.

    Raises ValueError with the name of the variable whose certificates cannot be read. If none of the client's
    connections speak TLS (not ``needed``), nothing is read, and the context trusts nobody.
    """
    if not needed:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _check_keylog()
    if file := os.environ.get("SSL_CERT_FILE"):
        return _load(f"SSL_CERT_FILE={file!r}", file=file)
    if folder := os.environ.get("SSL_CERT_DIR"):
        return _load(f"SSL_CERT_DIR={folder!r}", folder=folder)
    try:
        return httpx.create_ssl_context(trust_env=False)
    except OSError as error:
        raise ValueError(f"the certificates of the package certifi cannot be read: {error}; reinstall it") from error


def _load(what: str, file: str | None = None, folder: str | None = None) -> ssl.SSLContext:
    try:
        if folder is not None:
            _check_folders(folder)
        return ssl.create_default_context(cafile=file, capath=folder)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(
            f"{what}: no certificates to check a server with: {reason}; correct the variable or unset it"
        ) from error


def _check_folders(folders: str) -> None:
    """OpenSSL looks into the folders only when a server shows its certificate, and then blames the server."""
    existing = [folder for folder in map(Path, folders.split(os.pathsep)) if folder.is_dir()]
    if not existing:
        raise ValueError("not a folder")
    if not any(_HASHED.fullmatch(entry.name) for folder in existing for entry in folder.iterdir()):
        raise ValueError("no certificate in it has a name that OpenSSL looks for (run openssl rehash on the folder)")


def _check_keylog() -> None:
    """The ssl module opens SSLKEYLOGFILE while it makes a context."""
    path = os.environ.get("SSLKEYLOGFILE")
    if path:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = path
        except (OSError, ValueError) as error:
            raise ValueError(f"SSLKEYLOGFILE={path!r}: cannot be written: {error}; correct or unset it") from error

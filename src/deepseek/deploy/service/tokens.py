"""Access tokens: shown once, stored as hashes, compared in constant time."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from deepseek.errors import ConfigError

PREFIX = "ds_"
_NUM_BYTES = 32  # of randomness: nobody tries so many, so that a plain hash is enough


def new_token(path: Path) -> str:
    """Return a new token, and add its hash to a file that only its owner can read.

    Raises:
        ConfigError: the file cannot be written.
    """
    token = PREFIX + secrets.token_urlsafe(_NUM_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "a", encoding="ascii") as file:
            file.write(hash_token(token) + "\n")
    except OSError as error:
        raise ConfigError(
            f"token_file={path} cannot be written: {error.strerror}", fix="give another path"
        ) from error
    return token


def hash_token(token: str) -> str:
    """Return what is stored of a token: hexadecimal SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_hashes(path: Path) -> tuple[str, ...]:
    """Return the hashes of a file, one a line; `#` begins a comment.

    Raises:
        ConfigError: there is no such file, it has no hash, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"token_file={path} cannot be read", fix=f"deepseek serve --new-token {path}"
        ) from error
    hashes = [text for line in lines if (text := line.partition("#")[0].strip())]
    for number, text in enumerate(hashes, 1):
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise ConfigError(
                f"token_file={path}: entry {number} is no hash of a token",
                fix=f"it holds hashes, not tokens: deepseek serve --new-token {path}",
            )
    if not hashes:
        raise ConfigError(f"token_file={path} is empty", fix=f"deepseek serve --new-token {path}")
    return tuple(hashes)


def is_known(token: str, hashes: tuple[str, ...]) -> bool:
    """Return whether a token is one of those that were given out."""
    found = hash_token(token)
    # all of them, whichever fits: the time must not tell
    return any([hmac.compare_digest(found, known) for known in hashes])

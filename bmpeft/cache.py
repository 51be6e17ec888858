"""Where bmpeft keeps what it can compute again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path | None:
    """Where bmpeft keeps what it can compute again; None where the user has no home."""
    own, shared = os.environ.get("BMPEFT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser()
        # The specification of base directories has relative ones ignored.
        return (Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache") / "bmpeft"
    except RuntimeError:
        return None

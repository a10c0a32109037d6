"""Debian's Chromium, without a window: Playwright's own builds are not downloaded."""

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",  # in a container the user is root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""It asks nobody for anything of its own accord."""


def installed() -> str | None:
    """Where it is, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)

"""The command line. Nothing heavy is imported before a command is known, so ``--help`` answers at once."""

from wsi_ips.cli.application import app, main

__all__ = ["app", "main"]

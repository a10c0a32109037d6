"""Checks of an installation, each of them one line: what was found, and what to change.

Nothing heavy is imported before a check needs it, so that a package that is broken is a finding of its own.
"""

"""Checks that go wrong, for a process of their own to import."""

import os
import signal
import time

from wsi_ips.doctor.findings import Finding


def fine(name: str = "fine") -> Finding:
    return Finding(name, "ok", f"found by {os.getpid()}")


def raises() -> Finding:
    raise LookupError("no such\nluck")


def dies() -> Finding:
    os.kill(os.getpid(), signal.SIGSEGV)
    return fine()


def hangs() -> Finding:
    time.sleep(600)
    return fine()

"""The process that runs targets: ``python -m tests.fuzz.child``, requests in, verdicts out, a line of JSON each.

A request names a target's function and a folder that holds ``in/``; given and out are made of it. Whatever kills
this process is the fault of the request that it did not answer. Its standard error has to be a file.
"""

import json
import logging
import os
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from tests.fuzz.judge import judge, limit_memory
from wsi_ips.commands.application import log_to_terminal


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no verdict
    log_to_terminal()
    # Its handler would write our warnings, which are meant to be seen, where libraries must not print.
    logging.getLogger().handlers.clear()
    for line in sys.stdin:
        request = json.loads(line)
        module, _, function = request["run"].partition(":")
        run = getattr(import_module(module), function)
        limit_memory()
        out = Path(request["folder"]) / "out"
        out.mkdir()
        given = Path(os.fsdecode(bytes.fromhex(request["given"])))
        verdict = judge(run, given, out)
        answers.write(json.dumps(asdict(verdict)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

"""Children that run one input after the other, and are begun anew when one of them dies or hangs."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fuzz.edits import Files, write_files
from tests.fuzz.judge import TOO_MUCH, Verdict

ROOT = Path(__file__).parents[2]
MOST_WALL_S = 60.0
INPUTS_A_CHILD = 400
"""Then a new one is begun: what one input leaves behind in a process is not to be another one's finding."""


class Worker:
    """Judges inputs in a child. Use as a context manager; ``run`` is ``module:function`` of a target.

    wall_s: how long a child may take for one input before it is ended.
    """

    def __init__(self, *, wall_s: float = MOST_WALL_S) -> None:
        self.wall_s = wall_s
        self._scratch = Path(tempfile.mkdtemp(prefix="wsi_ips_fuzz_"))
        self._child: subprocess.Popen[str] | None = None
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def judge(self, run: str, files: Files) -> Verdict:
        """What is wrong with how the program takes these files; a child that dies over them says so too.

        What took too much is tried once more: the first time a child may have loaded a library for it.
        """
        verdict = self._judge(run, files)
        return self._judge(run, files) if verdict.problem.startswith(TOO_MUCH) else verdict

    def _judge(self, run: str, files: Files) -> Verdict:
        if self._child is None or self._asked >= INPUTS_A_CHILD:
            self._begin()
        child = self._child
        assert child is not None
        assert child.stdin is not None
        self._asked += 1
        folder = self._scratch / "input"
        shutil.rmtree(folder, ignore_errors=True)
        given = write_files(folder / "in", files)
        request = {"run": run, "folder": str(folder), "given": os.fsencode(given).hex()}
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass
        return self._answer(child)

    def _answer(self, child: "subprocess.Popen[str]") -> Verdict:
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], self.wall_s)
        if not ready:
            self._end()
            return Verdict(f"does not end | within {self.wall_s:g} s")
        line = child.stdout.readline()
        if line:
            return Verdict(**json.loads(line))
        code = child.wait()
        printed = (self._scratch / "stderr").read_text("utf-8", "replace").strip().splitlines()
        self._end()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Verdict(f"the process died of {how} | {printed[-1][:200] if printed else ''}")

    def _begin(self) -> None:
        self._end()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONFAULTHANDLER": "",
        }
        with (self._scratch / "stderr").open("w+b") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.child"], cwd=ROOT, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self._asked = 0

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            self._child = None

"""``make fuzz``: ``python -m tests.fuzz --minutes 5 [--seed 0] [--target tiff] [--out DIR]``.

Exits with 1 where something was found. Findings lie in the folder, a file of JSON each; copied into
``tests/fuzz/corpus`` they are tests.
"""

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import Tally, fuzz
from tests.fuzz.corpus import Entry
from tests.fuzz.targets import TARGETS
from tests.fuzz.workers import Worker


def main() -> int:
    options = _options()
    if options.again:
        return _again(options.again)
    targets = options.target or list(TARGETS)
    seed = options.seed if options.seed is not None else int(time.time())
    _say(f"seed {seed}: {', '.join(targets)}; {options.minutes:g} minutes")
    tally = fuzz(targets, seconds=60 * options.minutes, chance_seed=seed, say=_say, corpus=options.out)
    for line in _summary(tally, options.out):
        _say(line)
    return 1 if tally.findings else 0


def _again(paths: list[Path]) -> int:
    """Judge stored findings once more."""
    failed = 0
    with Worker() as worker:
        for path in paths:
            entry = Entry.read(path)
            verdict = worker.judge(TARGETS[entry.target].run, entry.files())
            failed += bool(verdict.problem)
            problem = f"{verdict.problem or 'nothing is wrong'} {verdict.where}".strip()
            _say(f"{path.name}: {problem}; said: {verdict.said[:300]!r}")
    return 1 if failed else 0


def _summary(tally: Tally, out: Path) -> list[str]:
    counts = ", ".join(f"{name} {number}" for name, number in tally.inputs.items())
    lines = [f"{sum(tally.inputs.values())} inputs ({counts}): {len(tally.findings)} findings"]
    for key, entry in tally.findings.items():
        lines.append(f"  {entry.target}: {entry.found} (seed {entry.seed}; {tally.again.get(key, 0)} more)")
    return [*lines, *([f"They lie in {out}."] if tally.findings else [])]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, help="of chance; none: another one each time")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="may be given several times")
    parser.add_argument("--out", type=Path, default=Path("fuzz_findings"))
    parser.add_argument("--again", type=Path, nargs="+", help="judge these stored findings, nothing else")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

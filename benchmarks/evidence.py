"""The evidence: what is learned from slide labels, over seeds, on real lymph nodes and on lung textures.

    python benchmarks/evidence.py --nodes DIR --textures DIR --outlines DIR [--seed N] [--only STEP …] [--quick]
                                  [--json] [--table] [--out DIR] [--again]

A step is a data set and a method, such as nodes_ips or textures_e2e; --only takes steps, data sets or methods.
Each runs in a process of its own, and what it found is a small JSON with commit, seed, machine and seconds. Of the
shared folders it is kept in benchmarks/results and committed, so that the table grows over days and machines and
nothing is run twice; of other folders, and with --quick, below --out. Without a folder its data set is left out.
--table prints Markdown over all seeds that were run, without running any.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

# Nothing heavy here: a child's ru_maxrss starts from its parent's size (Linux carries it over exec).

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.evidence_settings import BEGINS_FROM, DATA_SETS, METHODS, SHARED, asked, sources  # noqa: E402
from benchmarks.evidence_table import figures_of, markdown, read_results  # noqa: E402
from benchmarks.kept_results import COMMITTED, origin, read_result, tell  # noqa: E402
from benchmarks.steps import with_root  # noqa: E402

STEPS = [f"{data}_{method}" for data in DATA_SETS for method in ("features", *METHODS)]


def main() -> None:
    """Run what is missing of one seed, and print the figures of all seeds."""
    arguments = parsed()
    results = results_folder(arguments)
    if not arguments.table:
        composed: set[str] = set()
        for data, method in wanted(arguments):
            run(data, method, arguments, results, composed)
    found = read_results(results, quick=arguments.quick)
    if arguments.table:
        print(markdown(found))
        return
    tell(figures_of(found), as_json=arguments.json)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=Path, help="lymph-node patches, with manifest.csv")
    parser.add_argument("--textures", type=Path, help="lung textures, with manifest.csv")
    parser.add_argument("--outlines", type=Path, help="folder of NCRF's JSON outlines")
    parser.add_argument("--out", type=Path, default=Path("evidence_run"), help="slides, features, models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=(), metavar="STEP")
    parser.add_argument("--again", action="store_true", help="run the steps anew")
    parser.add_argument("--processes", type=int, default=1, help="that compose slides")
    parser.add_argument("--quick", action="store_true", help="a few small slides: does it run at all?")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    arguments = parser.parse_args()
    known = {*STEPS, *DATA_SETS, *METHODS, "features"}
    for name in set(arguments.only) - known:
        parser.error(f"no step {name!r}; known: {', '.join(sorted(known))}")
    for name in ("nodes", "textures"):
        folder = getattr(arguments, name)
        if folder is not None and not (folder / "manifest.csv").is_file():
            parser.error(f"{folder}: holds no manifest.csv; benchmarks/README.md says what belongs there")
    if (arguments.nodes or arguments.textures) and not (arguments.outlines and arguments.outlines.is_dir()):
        parser.error("--outlines DIR goes with --nodes and --textures")
    return arguments


def wanted(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """The steps asked for, (data set, method), in the order in which they need each other."""
    there = [data for data in DATA_SETS if all(getattr(arguments, name) for name in sources(data))]
    steps = [(data, method) for data in there for method in ("features", *METHODS)]
    only = set(arguments.only)
    chosen = [
        (data, method) for data, method in steps if not only or only & {data, method, f"{data}_{method}"}
    ]
    for data, method in list(chosen):  # what they go on from
        while (method := BEGINS_FROM.get(method, "")) and (data, method) not in chosen:
            chosen.append((data, method))
    return [step for step in steps if step in chosen]


def results_folder(arguments: argparse.Namespace) -> Path:
    """Where results are kept: the committed ones are of the shared folders alone."""
    given = {name: getattr(arguments, name) for name in SHARED if getattr(arguments, name)}
    shared = all(digest(folder) == SHARED[name] for name, folder in given.items())
    return COMMITTED if shared and not arguments.quick else arguments.out / "results"


def digest(folder: Path) -> str:
    """Tells a folder of pictures from others by its list of them."""
    return hashlib.sha256((folder / "manifest.csv").read_bytes()).hexdigest()[:12]


def run(
    data: str,
    method: str,
    arguments: argparse.Namespace,
    results: Path,
    composed: set[str],
    *,
    name: str | None = None,
) -> None:
    """Run a step that has no result yet. Ends this process where it fails.

    Args:
        data: The data set.
        method: The method.
        arguments: The command line.
        results: Folder of results.
        composed: Data sets whose slides are known to be there.
        name: What the result is called, without its seed. None: by data set and method.
    """
    seed, quick = arguments.seed, arguments.quick
    path = results / f"{name or f'{data}_{method}'}_seed{seed}.json"
    wanted_of = asked(data, method, seed=seed, quick=quick)
    if not arguments.again and read_result(path, wanted_of) is not None:
        return
    settings = {
        **{"data": data, "seed": seed, "quick": quick, "processes": arguments.processes},
        "work": str(arguments.out.resolve()),
        "sources": {name: str(getattr(arguments, name).resolve()) for name in sources(data)},
    }
    folder = arguments.out / f"settings_{data}_{seed}.json"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text(json.dumps(settings) + "\n")
    if data not in composed:
        step("data", folder, arguments.out / "data.json")
        composed.add(data)
    print(f"{name or f'{data}_{method}'}, seed {seed} …", file=sys.stderr, flush=True)
    results.mkdir(parents=True, exist_ok=True)
    program = origin()  # the one that is run, whatever is changed meanwhile
    # What a step writes is no result before it says what was asked and which program found it.
    step(method, folder, made := arguments.out / f"{path.stem}_found.json")
    found = json.loads(made.read_text())
    path.write_text(json.dumps({"asked": wanted_of, "seed": seed, **program, **found}, indent=1) + "\n")


def step(method: str, settings: Path, result: Path) -> None:
    """Run ``python -m benchmarks.evidence_steps``."""
    command = [sys.executable, "-m", "benchmarks.evidence_steps", method, str(settings), str(result)]
    done = subprocess.run(command, env=with_root(), stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()

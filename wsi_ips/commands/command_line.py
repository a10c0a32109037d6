"""What every command has on the command line: examples in its help, answers to mistyped options, completion.

:class:`ExplainedCommand` is the class of all commands. :data:`EXAMPLES` is what their help shows. The functions
below complete values for the shell (``wsi-ips --install-completion``). They answer while somebody waits for the
Tab key, so nothing here imports torch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

EXAMPLES: Mapping[str, Sequence[str]] = MappingProxyType({
    "info": ("wsi-ips info slide.svs", "wsi-ips info slide.svs --json"),
    "tile": (
        "wsi-ips tile slides/ --out tiles",
        "wsi-ips tile slides/ --out tiles --set tiling.patch_px=224 --set tiling.patch_mpp=1.0",
    ),
    "features": (
        "wsi-ips features slides/ --encoder uni2-h --out features",
        "wsi-ips features slides/ --encoder resnet50 --out features --layout trident",
    ),
    "init": (
        "wsi-ips init my_study --labels labels.csv --slides slides/",
        "wsi-ips init my_study --task survival --features features/",
    ),
    "finetune": (
        "wsi-ips finetune labels.csv --slides slides/ --out runs/first",
        "wsi-ips finetune labels.csv --recipe recipe.yaml --out runs/five --folds 5",
    ),
    "predict": (
        "wsi-ips predict slides/ --checkpoint runs/first/model.safetensors --out predictions",
        "wsi-ips predict slides/ --checkpoint runs/five/fold_*/model.safetensors --out predictions --workers 4",
    ),
    "overlay": (
        "wsi-ips overlay predictions",
        "wsi-ips overlay predictions --map attention --scale rank --out overlays",
    ),
    "export": (
        "wsi-ips export predictions --format geojson",
        "wsi-ips export predictions --format ome-tiff --um-per-px 16",
    ),
    "view": ("wsi-ips view predictions", "wsi-ips view predictions --port 8080"),
    "calibrate": (
        "wsi-ips calibrate predictions labels.csv --out calibration.json",
        "wsi-ips predict slides/ --checkpoint model.safetensors --calibration calibration.json --out calibrated",
    ),
    "evaluate": (
        "wsi-ips evaluate predictions labels.csv --split test",
        "wsi-ips evaluate predictions labels.csv --annotations outlines/ --against other_predictions",
    ),
    "compare": (
        "wsi-ips compare pipelines/compare_features.yaml --manifest labels.csv --features f/ --out compared",
    ),
    "report": ("wsi-ips report predictions", "wsi-ips report predictions --out report.html"),
    "train-detector": ("wsi-ips train-detector monuseg --out runs/nuclei --recipe pipelines/detect_nuclei.yaml",),
    "detect": ("wsi-ips detect slides/ --detector detector.safetensors --run predictions --out objects",),
    "search": ("wsi-ips search pipelines/spinenet_search_small.yaml",),
    "demo": (
        "wsi-ips demo --out demo_run",
        "wsi-ips demo --out small --set data.train=4 --set data.val=2 --set data.test=2 --set data.side_px=2048",
    ),
    "encoders": ("wsi-ips encoders", "wsi-ips encoders uni2-h"),
    "merge": ("wsi-ips merge runs/lora/model.safetensors --out whole.safetensors",),
    "doctor": ("wsi-ips doctor", "wsi-ips doctor --quick --folder slides/ --folder runs/"),
    "inspect": (
        "wsi-ips inspect predictions slide_1",
        "wsi-ips inspect predictions slide_1 --debug-overlay slide_1.png",
    ),
    "plan": (
        "wsi-ips plan recipe.yaml",
        "wsi-ips plan pipelines/finetune_camelyon16.yaml --slides 400 --patches 20000 --device h200",
        "wsi-ips plan pipelines/tables/camelyon16.yaml --data CAMELYON16",
    ),
    "table": ("wsi-ips table pipelines/tables/camelyon16.yaml --data CAMELYON16 --out table",),
    "run": (
        "wsi-ips run pipelines/demo.yaml --set out=demo_run",
        "wsi-ips run my_study/recipe.yaml --set training.epochs=5",
    ),
    "verify": ("wsi-ips data verify CAMELYON16",),
    "manifest": ("wsi-ips data manifest CAMELYON16 --out manifest.csv",),
    "twin": ("wsi-ips data twin camelyon16 --out twin",),
    "nodes": ("wsi-ips data nodes patches/ --outlines outlines/ --out nodes",),
})  # fmt: skip
"""``{command: command lines}`` as its ``--help`` shows them. A test parses every line."""

AGGREGATORS = (
    "direct", "paper", "mean", "max", "abmil", "clam_sb", "clam_mb", "dsmil", "transmil", "abmilx"
)  # fmt: skip
"""Names that ``model.aggregator`` takes. The registry of aggregators itself is too heavy to ask for a
completion."""
MOST_SUGGESTED = 3
"""How many options a message about a mistyped one names at most."""


class ExplainedCommand(TyperCommand):
    """A command whose help ends with :data:`EXAMPLES`, and which answers a mistyped option with what was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Raises what Click raises, with a suggestion for an option that does not exist."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            suggest_option(error, self, settings_of(ctx))
            raise

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples behind the options."""
        super().format_epilog(ctx, formatter)
        shown = EXAMPLES.get(ctx.info_name.split()[-1] if ctx.info_name else "", ())
        if shown:
            with formatter.section("Examples"):
                for line in shown:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def suggest_option(error: Exception, command: Any, settings: Sequence[str] = ()) -> None:
    """Add to an error about an unknown option which one may have been meant. Other errors stay as they are.

    Args:
        error: What Click raised. Typer has a Click of its own, so that the class is known by its name.
        command: The command that was called.
        settings: Keys of the settings that the command takes with ``--set``.
    """
    if type(error).__name__ != "NoSuchOption":
        return
    unknown: Any = error
    wrong = str(unknown.option_name)
    words = wrong.lstrip("-").replace("-", "_")[:80].lower()
    ends: dict[str, str] = {}
    for setting_key in settings:
        ends.setdefault(setting_key.rpartition(".")[2], setting_key)
    options = [name for param in command.params for name in (*param.opts, *param.secondary_opts)]
    alike = get_close_matches(wrong[:80].lower(), [name for name in options if name.startswith("--")])
    key = ends.get(words)
    if key is None and not alike:
        key = next((ends[name] for name in get_close_matches(words, list(ends), n=1, cutoff=0.75)), None)
    unknown.possibilities = None
    if key is not None:
        unknown.message += f". It is a setting: --set {key}=VALUE"
    elif alike:
        unknown.message += f". Did you mean {' or '.join(alike[:MOST_SUGGESTED])}?"


def settings_of(ctx: Any) -> list[str]:
    """The keys that ``--set`` takes in a command, such as ``training.epochs``; none without ``--set``."""
    job = _job_of(ctx)
    if job is None:
        return []
    from wsi_ips.commands.recipe import keys_of

    return [key for key in keys_of(job) if "*" not in key]


def _job_of(ctx: Any) -> Any:
    from wsi_ips.commands.recipe import JOBS, Job

    name = ctx.info_name.split()[-1] if ctx.info_name else ""
    if name not in JOBS or all("--set" not in param.opts for param in ctx.command.params):
        return None
    job = JOBS.load(name)
    return job if issubclass(job, Job) else None


def one_of(*names: str) -> Callable[[str], list[str]]:
    """A completion by these names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def encoder_names(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of an encoder, with its licence; those of other packages without."""
    from wsi_ips.models.encoders.registry import ENCODERS, known_names

    return [
        (name, ENCODERS[name].licence if name in ENCODERS else "")
        for name in known_names()
        if name.startswith(incomplete)
    ]


def setting(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete ``section.key=`` behind ``--set``; behind the ``=``, the values that a setting can have."""
    key, equals, begun = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in settings_of(ctx) if name.startswith(incomplete)]
    return [f"{key}={value}" for value in _values(ctx, key) if value.startswith(begun)]


def _values(ctx: typer.Context, key: str) -> list[str]:
    from wsi_ips.config.model import OUR_SELECTORS
    from wsi_ips.config.slides import OUR_SEGMENTERS
    from wsi_ips.registry import outside

    if key in ("model.encoder", "model.encoder.name"):
        return [name for name, _ in encoder_names("")]
    named = {
        "model.aggregator": (AGGREGATORS, "wsi_ips.aggregators"),
        "model.aggregator.name": (AGGREGATORS, "wsi_ips.aggregators"),
        "selection.selector": (OUR_SELECTORS, "wsi_ips.selectors"),
        "tiling.tissue.method": (OUR_SEGMENTERS, "wsi_ips.segmenters"),
    }
    if key in named:
        ours, group = named[key]
        return [*ours, *(entry.name for entry in outside(group, ours))]
    job = _job_of(ctx)
    if job is None:
        return []
    from wsi_ips.commands.recipe import annotation_of

    return list(dict.fromkeys(_choices(annotation_of(job, key))))


def _choices(annotation: Any) -> Iterable[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for part in get_args(annotation):
            yield from _choices(part)

"""How fast a machine is: :class:`Rates`, measured here (:mod:`wsi_ips.planning.measure`) or stated for a device.

:func:`stated_rates` scales the arithmetic of an encoder by what a card computes at best (``devices.yaml``,
each number with its source) and by the share of that which such networks reach. What is not known of a device
is None, and a plan says so instead of a number.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from wsi_ips.config import FinetuneConfig, Section
from wsi_ips.config.section import LARGEST_BYTES, NotPlainYaml, first_problem, load_yaml
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.planning.simulated import Flops

DEVICES = Path(__file__).with_name("devices.yaml")
STATED_MEGAPIXEL_S = 2 / (6_750 * 256**2 / 1e6)
"""Thread seconds for a million pixels of JPEG tiles that are patches, see ``STATED_DECODING``."""
STATED_DECODING = "6,750 tiles of 256 px a second on two threads, as docs/speed.md measured on a drawn slide"
OF_THE_HOST = {
    "tissue_s", "open_s", "megapixel_s", "patch_s", "reread_s", "head", "overlay_s", "store_s", "save_s",
    "start_s", "base_mb",
}  # fmt: skip
"""Rates that are those of the CPU beside a card."""
Clock = Literal["wall", "cpu"]
"""Seconds that pass, or seconds of a core."""
Kind = TypeVar("Kind", bound=Section)
Share = Annotated[float, Field(ge=0, le=1)]


class HeadRates(Section):
    """Seconds of learning on stored features, from whole short trainings."""

    bag_s: NonNegativeFloat
    """Of a bag in an epoch, with as many patches as a slide has in the mean."""
    epoch_s: NonNegativeFloat
    """Of an epoch by itself: checkpoints and figures."""
    start_s: NonNegativeFloat
    """Once."""


class Rates(Section):
    """How fast a machine does the parts of a run. Times are seconds.

    A field that is None was neither measured nor stated.
    """

    device: str
    how: Literal["measured", "estimated", "given"]
    """``measured`` here and now, ``estimated`` from a device's data sheet, ``given`` in a file."""
    clock: Clock = "wall"
    """``cpu``: all times are seconds of a core."""
    cores: PositiveInt
    """CPU cores that decode."""
    start_s: NonNegativeFloat | None = None
    """From the start of the process until the network is there."""
    tissue_s: NonNegativeFloat | None = None
    """Opening a slide and finding its tissue. None: as the survey took."""
    open_s: NonNegativeFloat = 0.0
    """Opening a slide whose patches are known, and planning which tiles they need."""
    megapixel_s: NonNegativeFloat | None = None
    """Reading and decoding a million pixels of stored tiles, seconds of one thread."""
    patch_s: NonNegativeFloat = 0.0
    """Putting a patch together and resampling it, seconds of one thread."""
    forward_s: NonNegativeFloat | None = None
    """A patch through the encoder without gradients, in batches of ``streaming.batch``."""
    relearn_s: NonNegativeFloat | None = None
    """A patch forwards without gradients in training mode, where features are not known from the selection."""
    learn_s: NonNegativeFloat | None = None
    """A kept patch forwards and backwards, in micro-batches."""
    shown_s: NonNegativeFloat = 0.0
    """Augmenting a patch."""
    reread_s: NonNegativeFloat = 0.0
    """Reading a kept patch again; the thread of the program waits for it."""
    optimizer_s: NonNegativeFloat = 0.0
    """A step of the optimiser."""
    hidden: Share = 0.0
    """The share of the shorter one of decoding and encoding that takes no time because the other goes on."""
    head: HeadRates | None = None
    """Learning on stored features. None: there is none, or it is not known."""
    overlay_s: NonNegativeFloat = 0.0
    """Drawing a slide's overlay."""
    store_s: NonNegativeFloat = 0.0
    """Storing a slide's result."""
    save_s: NonNegativeFloat = 0.0
    """Writing the network's weights once."""
    base_mb: NonNegativeFloat | None = None
    """Memory of the process with everything imported and nothing loaded."""
    peak_mb: NonNegativeFloat | None = None
    """Peak memory of a process that did each part of the run once."""
    device_gb: PositiveFloat | None = None
    """Memory of the card."""
    half_gain: PositiveFloat = 1.0
    """How many times faster the encoder would be in bf16, where it is stated."""
    notes: tuple[str, ...] = ()
    """What is to be said of these numbers."""


class JobRates(Section):
    """Seconds of what a row of a table does beside its work on slides. None: neither measured nor given."""

    device: str
    how: Literal["measured", "given"] = "measured"
    clock: Clock = "wall"
    start_s: NonNegativeFloat | None = None
    """From the start of a job's process until everything is imported."""
    end_s: NonNegativeFloat = 0.0
    """From the end of a job until its process is gone, which takes long where PyTorch has been imported."""
    head: HeadRates | None = None
    """Training on stored features."""
    label_s: NonNegativeFloat | None = None
    """A slide labelled from its stored features, and its result stored."""
    score_s: NonNegativeFloat | None = None
    """Loading the chosen checkpoint and evaluating its run, whatever the number of slides."""
    score_slide_s: NonNegativeFloat = 0.0
    """The same, for each slide that is scored."""
    peak_mb: NonNegativeFloat | None = None
    """Peak memory of a process that did all of this once."""


class Device(Section):
    """A card, as ``devices.yaml`` has it. Arithmetic is in 10^12 operations a second, dense, with sparsity off."""

    name: str
    memory_gb: PositiveFloat
    bandwidth_gb_s: PositiveFloat
    fp32: PositiveFloat
    tf32: PositiveFloat | None
    bf16: PositiveFloat
    transformer_share: Share
    convolution_share: Share
    source: str
    """Where the numbers are from."""
    share_source: str
    """What the shares of the peak rest on."""


def known_devices() -> dict[str, Device]:
    """The devices of ``devices.yaml`` by name."""
    return {name: Device.model_validate(values) for name, values in load_yaml(DEVICES.read_text()).items()}


def stated_rates(device: str, config: FinetuneConfig, flops: Flops, *, host: Rates | None) -> Rates:
    """What a listed card would need, ``estimated``.

    Args:
        device: Its name in ``devices.yaml``.
        config: The settings: the precision decides which peak counts.
        flops: What the encoder computes for a patch.
        host: What was measured on this machine. Reading and decoding are the CPU's work and are taken from it;
            None: they are as stated in docs/speed.md.

    Raises:
        ConfigError: The device is not listed.
    """
    devices = known_devices()
    if device not in devices:
        raise ConfigError(
            f"--device {device}: known are cpu, cuda (both measured here) and {', '.join(devices)}"
        )
    card = devices[device]
    forward = 1e-12 * flops.forward / _per_s(card, config, flops)
    notes = _notes(card, config)
    if host is None:
        kept: dict[str, Any] = {"megapixel_s": STATED_MEGAPIXEL_S}
        notes.append(f"reading and decoding: {STATED_DECODING}")
    else:
        kept = host.model_dump(include=OF_THE_HOST)
        notes.append(f"reading and decoding are those of this machine's CPU, {host.device}")
    return Rates.model_validate(
        {
            **kept,
            "device": card.name,
            "how": "estimated",
            "cores": 8 * config.streaming.threads,
            "forward_s": forward,
            "relearn_s": forward,
            "learn_s": forward * flops.learn / flops.forward,
            "hidden": 1.0,
            "device_gb": card.memory_gb,
            "half_gain": _gain(card, flops),
            "notes": tuple(notes),
        }
    )


def _computes_in_half(config: FinetuneConfig) -> bool:
    return config.training.precision in ("bf16", "fp16")


def _per_s(card: Device, config: FinetuneConfig, flops: Flops) -> float:
    """10^12 operations a second that the encoder is taken to reach. Where the precision is float32, PyTorch's
    defaults count: TF32 in convolutions, float32 in matrix products.
    """
    half = _computes_in_half(config)
    convolutions = (card.bf16 if half else card.tf32 or card.fp32) * card.convolution_share
    others = (card.bf16 if half else card.fp32) * card.transformer_share
    return 1 / (flops.convolutions / convolutions + (1 - flops.convolutions) / others)


def _notes(card: Device, config: FinetuneConfig) -> list[str]:
    """Where the numbers of a card are from."""
    best = card.bf16 if _computes_in_half(config) else card.fp32
    return [
        f"estimated, not measured: {card.name} computes {best:g} TFLOP/s at best ({card.source})",
        f"taken to be reached of that: {card.transformer_share:.0%} in transformers, {card.convolution_share:.0%} "
        f"in convolutions ({card.share_source})",
        f"a core is taken to be there for each of {config.streaming.threads} streaming.threads",
    ]


def _gain(card: Device, flops: Flops) -> float:
    """How many times faster bf16 is than float32, by the peaks."""
    convolutions = flops.convolutions / (card.tf32 or card.fp32) + (1 - flops.convolutions) / card.fp32
    return convolutions * card.bf16


def read_rates(path: Path) -> Rates:
    """Rates from a YAML or JSON file: their own, or those of a plan that ``wsi-ips plan --out`` wrote.

    Raises:
        ConfigError: The file is missing, or does not hold rates.
    """
    values = read_values(path)
    if isinstance(values.get("rates"), dict):
        values = values["rates"]
    if "rows" in values:
        raise ConfigError(f"--rates {path}: is the plan of a table, whose rows have rates of their own")
    return checked_rates(Rates, values, path)


def read_values(path: Path) -> dict[str, Any]:
    """What a YAML or JSON file of rates holds.

    Raises :class:`ConfigError` for one that is missing or no mapping.
    """
    if not path.is_file():
        raise ConfigError(f"--rates {path}: no such file")
    if path.stat().st_size > LARGEST_BYTES:
        raise ConfigError(f"--rates {path}: larger than {LARGEST_BYTES} bytes; is it a file of rates?")
    try:
        text = path.read_text(encoding="utf-8")
        values: Any = json.loads(text) if path.suffix == ".json" else load_yaml(text)
    except (NotPlainYaml, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"--rates {path}: cannot be read: {one_line(error, most=200)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--rates {path}: is no mapping of rates; see docs/plan.md")
    return values


def checked_rates(kind: type[Kind], values: Mapping[str, Any], path: Path) -> Kind:
    """Rates of a kind from values of the file ``path``. Raises :class:`ConfigError` that names what is wrong."""
    try:
        return kind.model_validate({"how": "given", **values})
    except ValidationError as error:
        raise ConfigError(f"--rates {path}: {first_problem(error)}") from None

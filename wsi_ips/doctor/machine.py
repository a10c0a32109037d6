"""The machine and what is installed on it: versions, processor, memory, devices, and the hub's cache."""

import importlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi_ips.doctor.findings import Check, Finding
from wsi_ips.errors import one_line
from wsi_ips.storage.system import container_processors, has_nvidia_driver, memory_bytes, usable_processors

SAFE_OPENSLIDE = (4, 0, 1)
"""The first OpenSlide without the known holes CVE-2026-48977 and CVE-2026-54604."""

LEAST_MEMORY_GIB = 4.0
"""GiB of free main memory below which a training may not fit."""

ONLINE_TIMEOUT_S = 10
"""Seconds that the hub is waited for."""


def machine_checks(*, online: bool) -> list[Check]:
    """The checks of this module, in the order in which they are shown. ``online`` allows a request to the hub."""
    return [
        Check("versions", versions),
        Check("packages", packages),
        Check("openslide", openslide_library),
        Check("processor", processor),
        Check("memory", memory),
        Check("devices", devices),
        Check("hub", hub, {"online": online}),
        Check("extensions", extensions),
    ]


def versions() -> Finding:
    """Versions of Python and of everything that can change a result."""
    from wsi_ips.storage.fingerprint import versions as recorded

    told = ", ".join(f"{name} {number}" for name, number in recorded().items() if number != "not installed")
    return Finding("versions", "ok", f"{told} ({platform.platform(terse=True)})")


FOR = {"demo": "the weights of wsi-ips demo", "plots": "the plots of evaluate", "remote": "slides at URLs"}
"""What those extras are for that somebody misses first."""


def packages() -> list[Finding]:
    """Whether every package that is needed is there in a version that will do, and which extras are complete."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in requires("wsi_ips") or ()]
    except PackageNotFoundError:
        return [
            Finding("packages", "warning", "wsi_ips runs from a folder and is not installed, so that nothing is "
                    "known of what it needs", "pip install -e . in that folder")
        ]  # fmt: skip

    def lacking(requirement: Requirement) -> str:
        """What is wrong with a requirement's package; empty if nothing is."""
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            return "is not installed"
        return "" if requirement.specifier.contains(there, prereleases=True) else f"is {there}"

    faults, extras = [], dict[str, bool]()
    for one in wanted:
        extra = next((name for name in _extras(wanted) if _belongs(one, name)), None)
        if extra is None and (one.marker is None or one.marker.evaluate({"extra": ""})):
            if said := lacking(one):
                needed = f"{one.name} {said}, and {one.name}{one.specifier} is needed"
                faults.append(
                    Finding("packages", "fault", needed, f"pip install '{one.name}{one.specifier}'")
                )
        elif extra is not None and one.name.replace("-", "_") != "wsi_ips":
            extras[extra] = extras.get(extra, True) and not lacking(one)
    there = sorted(name for name, whole in extras.items() if whole and name != "dev")
    absent = sorted(name for name, whole in extras.items() if not whole and name != "dev")
    told = f"all that is needed is installed; extras: {', '.join(there) or 'none'}"
    named = [f"{name} ({FOR[name]})" if name in FOR else name for name in absent]
    fix = (
        f"nothing has to be done; extras that could be added with pip install 'wsi_ips[NAME]': {', '.join(named)}"
        if absent
        else ""
    )
    return faults or [Finding("packages", "ok", told, fix)]


def _extras(wanted: Sequence[Any]) -> list[str]:
    """The names of the extras in the markers of requirements."""
    marked = (str(one.marker).partition("extra == ")[2] for one in wanted if one.marker is not None)
    return list(dict.fromkeys(text.strip("\"' )") for text in marked if text))


def _belongs(requirement: Any, extra: str) -> bool:
    """Whether a requirement is only one of this extra's."""
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def openslide_library() -> Finding:
    """Whether OpenSlide's library can be loaded, and whether its version has known holes."""
    try:
        openslide = importlib.import_module("openslide")
    except (ImportError, OSError) as error:
        reason = one_line(f"{type(error).__name__}: {error}", most=200)
        return Finding(
            "openslide",
            "fault",
            f"cannot be loaded ({reason})",
            "pip install --force-reinstall openslide-bin",
        )
    told = str(openslide.__library_version__)
    numbers = tuple(int(part) for part in told.split("-")[0].split(".")[:3] if part.isdigit())
    if numbers < SAFE_OPENSLIDE:
        return Finding(
            "openslide",
            "warning",
            f"its library is {told}, whose holes CVE-2026-48977 and CVE-2026-54604 are known",
            "open only slides that you trust, or pip install --upgrade openslide-bin",
        )
    return Finding("openslide", "ok", f"library {told}, openslide-python {openslide.__version__}")


def processor() -> Finding:
    """How many processors may be used, and whether PyTorch uses their wide instructions and bfloat16."""
    import torch

    count, allowed = usable_processors(), container_processors()
    flags = _flags(torch)
    wide = torch.backends.cpu.get_cpu_capability()
    half = [name for name in ("avx512_bf16", "amx_bf16", "arm_bf16") if flags.get(name)]
    told = f"{count} of {os.cpu_count()} usable, {platform.machine()}, PyTorch uses {wide} and " + (
        f"has {' and '.join(name.upper() for name in half)}" if half else "has no bfloat16 instructions"
    )
    told += f", {torch.get_num_threads()} threads"
    if allowed is not None and allowed < count:
        return Finding(
            "processor",
            "warning",
            f"{told}; this container may use {allowed:g} of them only",
            f"set OMP_NUM_THREADS={max(1, int(allowed))}, and --set streaming.threads to as many",
        )
    if wide in ("DEFAULT", "NO AVX") and platform.machine().lower() in ("x86_64", "amd64"):
        fix = "use a processor with AVX2 (since 2013), or in a virtual machine pass the host's processor through"
        return Finding("processor", "warning", told, fix)
    return Finding("processor", "ok", told, "" if half else "on it leave --precision at 32")


def _flags(torch: Any) -> dict[str, bool]:
    """The processor's instructions by name, as far as this PyTorch tells them."""
    told = getattr(torch.cpu, "get_capabilities", None)
    if told is not None:
        return {name: value for name, value in told().items() if isinstance(value, bool)}
    asked = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    return {name: bool(getattr(torch.cpu, function, bool)()) for name, function in asked.items()}


def memory() -> Finding:
    """How much main memory there is, and how much is free."""
    total, free = memory_bytes()
    told = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
    if free / 2**30 < LEAST_MEMORY_GIB:
        fix = (
            "close other programs, or see 'Out of memory' in the docs; prediction of one slide at a time fits"
        )
        return Finding("memory", "warning", told, fix)
    return Finding("memory", "ok", told)


def devices() -> list[Finding]:
    """Every device beside the processor: its memory, and whether it calculates rightly."""
    import torch

    found = [_cuda(torch, number) for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        limit = torch.mps.recommended_max_memory() / 2**30
        found.append(_tried(torch, "mps", f"Apple's GPU, {limit:.1f} GiB of memory for it"))
    if found:
        return found
    if has_nvidia_driver():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        fix = "install the PyTorch that fits the driver (https://pytorch.org), or update the driver"
        return [
            Finding("devices", "warning", f"there is an NVIDIA GPU, and PyTorch, {built}, cannot use it", fix)
        ]
    return [Finding("devices", "ok", "no GPU; everything is done by the processor")]


def _cuda(torch: Any, number: int) -> Finding:
    """One CUDA device."""
    about = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    bf16 = "bf16" if about.major >= 8 else "no bf16"
    told = (
        f"{about.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, compute capability "
        f"{about.major}.{about.minor}, {bf16}"
    )
    return _tried(torch, f"cuda:{number}", told)


def _tried(torch: Any, device: str, told: str) -> Finding:
    """Multiply two matrices on the device and compare with the processor's product."""
    try:
        here = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
        there = here.to(device)
        off = float(((there @ there).cpu() - here @ here).abs().max())
    except RuntimeError as error:
        reason = one_line(str(error), most=200)
        fix = (
            "install the PyTorch that fits the card and its driver (https://pytorch.org), or use --device cpu"
        )
        return Finding(device, "fault", f"{told}; cannot calculate ({reason})", fix)
    if not off < 0.05:  # TF32 keeps three digits
        return Finding(
            device, "fault", f"{told}; a product is off by {off:g}", "use --device cpu, and have it tested"
        )
    return Finding(device, "ok", told)


def hub(*, online: bool) -> list[Finding]:
    """Where the hub keeps weights here, whether there is a token for gated ones, and if asked, whether it answers.

    The token is never shown. Without ``online`` nothing is sent.
    """
    from huggingface_hub import constants, get_token

    from wsi_ips.models.encoders.listing import cached_weights
    from wsi_ips.models.encoders.registry import ENCODERS

    cache, token = Path(constants.HF_HUB_CACHE), get_token()
    there = [name for name, entry in ENCODERS.items() if cached_weights(entry)]
    state = "exists" if cache.is_dir() else "is made when it is needed"
    told = (
        f"cache {cache} ({state}), weights of {len(there)} of {len(ENCODERS)} listed encoders, "
        f"{'a token is there' if token else 'no token'}"
    )
    place = next(parent for parent in (cache, *cache.parents) if parent.exists())
    if not os.access(place, os.W_OK):
        found = [
            Finding(
                "hub", "warning", f"{told}; nothing can be written there", "set HF_HOME to another folder"
            )
        ]
    elif token or constants.HF_HUB_OFFLINE:
        offline = "; HF_HUB_OFFLINE is set: nothing is downloaded" if constants.HF_HUB_OFFLINE else ""
        found = [Finding("hub", "ok", told + offline)]
    else:
        found = [Finding("hub", "ok", told, "for gated encoders accept their licence, then hf auth login")]
    return [*found, _answer(constants.ENDPOINT, token)] if online else found


def extensions() -> list[Finding]:
    """What other packages add, whether it loads, and what is ignored because its name is somebody else's."""
    from wsi_ips.errors import NameTaken, WsiIpsError
    from wsi_ips.heatmaps.export import EXPORTS
    from wsi_ips.models.aggregators.registry import AGGREGATORS
    from wsi_ips.models.encoders.registry import ENCODER_REGISTRY
    from wsi_ips.selection.reading import BAG_READERS
    from wsi_ips.slides.registry import READERS
    from wsi_ips.tiling.tissue import SEGMENTERS
    from wsi_ips.training.module import METHODS

    kinds: list[Any] = [
        READERS, ENCODER_REGISTRY, AGGREGATORS, BAG_READERS, METHODS, EXPORTS, SEGMENTERS
    ]  # fmt: skip
    loaded: list[str] = []
    faults: list[str] = []
    for kind in kinds:
        for entry in kind.others():
            try:
                kind.load(entry.name)
            except NameTaken:  # among the ignored
                continue
            except WsiIpsError as error:
                faults.append(str(error))
            else:
                loaded.append(f"{kind.kind} {entry.name} of {kind.provider(entry.name)}")
    ignored = dict.fromkeys(line for kind in kinds for line in kind.ignored())
    fix = "have it renamed there, or uninstall the package"
    return [
        Finding("extensions", "ok", ", ".join(loaded) or "no other package adds anything"),
        *(Finding("extensions", "warning", fault) for fault in dict.fromkeys(faults)),
        *(Finding("extensions", "warning", line, fix) for line in ignored),
    ]


def _answer(endpoint: str, token: str | None) -> Finding:
    """Ask the hub whether it is there, and whether it knows the token."""
    import urllib.error
    import urllib.request

    path, headers = (
        ("/api/whoami-v2", {"Authorization": f"Bearer {token}"}) if token else ("/api/models?limit=1", {})
    )
    if not endpoint.startswith(("https://", "http://")):
        return Finding(
            "hub online", "fault", f"{endpoint} is no address", "set HF_ENDPOINT rightly, or not at all"
        )
    request = urllib.request.Request(endpoint.rstrip("/") + path, headers=headers)  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=ONLINE_TIMEOUT_S):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        if error.code == 401 and token:
            return Finding("hub online", "fault", f"{endpoint} does not accept the token", "hf auth login")
        return Finding("hub online", "warning", f"{endpoint} answers {error.code}", "try again later")
    except OSError as error:
        reason = one_line(str(getattr(error, "reason", error)), most=160)
        fix = "check the network and HTTPS_PROXY; download weights elsewhere and set HF_HUB_OFFLINE=1"
        return Finding("hub online", "fault", f"{endpoint} does not answer ({reason})", fix)
    return Finding("hub online", "ok", f"{endpoint} answers" + (", and accepts the token" if token else ""))

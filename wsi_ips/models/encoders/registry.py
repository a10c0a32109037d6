"""Which encoders can be used by name: the listed ones, those of other packages, and functions in a file of the
user.

:func:`named` finds an encoder, :func:`entry_of` its metadata. Another package adds an encoder with an entry
point of the group ``wsi_ips.encoders``. The name of the entry point is that of the encoder; its object is an
:class:`EncoderEntry`, or a function without arguments that returns a module (see :func:`named`).
"""

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from wsi_ips.errors import ConfigError, one_line
from wsi_ips.models.encoders.entry import EncoderEntry
from wsi_ips.models.encoders.families import (
    conch,
    ctranspath,
    gigapath,
    gpfm,
    h_optimus,
    hibou,
    kaiko,
    keep,
    lunit,
    midnight,
    phikon,
    resnets,
    uni,
    virchow,
)
from wsi_ips.registry import Registry

CODE_FILE = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
"""The form ``FILE.py:FUNCTION`` of an encoder that is a function in a file of the user."""
OUR_OTHER_NAMES = ("features", "spinenet", "ats_megapixel_mnist", "ats_speed_limits")
"""Names of encoders that stand in no list, since they are no patch encoders that could be chosen freely."""
ALLOWED_CODE = "WSI_IPS_ENCODER_CODE"
"""The environment variable by which a user allows the ``FILE.py:FUNCTION`` of a checkpoint to be run."""


def _unique(*families: tuple[EncoderEntry, ...]) -> dict[str, EncoderEntry]:
    entries = [entry for family in families for entry in family]
    found = {entry.name: entry for entry in entries}
    if len(found) != len(entries):
        raise ValueError("two encoders have the same name")
    for entry in entries:
        if problem := entry.problem or ("" if entry.sources else "it has no sources"):
            raise ValueError(f"encoder {entry.name}: {problem}")
    return found


ENCODERS: Mapping[str, EncoderEntry] = _unique(
    uni.ENTRIES,
    virchow.ENTRIES,
    h_optimus.ENTRIES,
    gigapath.ENTRIES,
    gpfm.ENTRIES,
    phikon.ENTRIES,
    hibou.ENTRIES,
    midnight.ENTRIES,
    kaiko.ENTRIES,
    lunit.ENTRIES,
    conch.ENTRIES,
    ctranspath.ENTRIES,
    keep.ENTRIES,
    resnets.ENTRIES,
)
"""The metadata of the encoders that come with wsi_ips, by name."""


def named(name: str) -> EncoderEntry | Any | None:
    """The encoder of this name. None if nobody here knows it, so that timm or the hub may.

    The result is an :class:`EncoderEntry`, or the module that a function of the user or of another package
    returned. Such a module maps pixels (n, 3, P, P) in 0..1, normalised by ``model.encoder.mean`` and ``std`` if
    these are set, to (n, D), and its attribute ``dim`` is D. A function in a file is run, so call
    :func:`check_code_allowed` first for a name that does not come from the user.

    Raises:
        ConfigError: The file or the package of the encoder does not load, or its function fails.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if CODE_FILE.fullmatch(name):
        return _given(_from_file(name), name)
    return _given(ENCODER_REGISTRY.load(name), name) if name in ENCODER_REGISTRY else None


def entry_of(name: str) -> EncoderEntry | None:
    """The metadata of an encoder, or None if there are none.

    No network is built, and a file is run only if the user has named it (:func:`allow_code`).

    Raises:
        ConfigError: The file or the package of the encoder does not load.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    found: Any = None
    if CODE_FILE.fullmatch(name):
        found = _from_file(name) if _is_allowed(name) else None
    elif name in ENCODER_REGISTRY:
        found = ENCODER_REGISTRY.load(name)
    return found if isinstance(found, EncoderEntry) else None


def known_names() -> list[str]:
    """The names of all encoders: the listed ones in the order of their families, then those of other packages."""
    return ENCODER_REGISTRY.names()


def code_file(name: str) -> Path | None:
    """The file of ``FILE.py:FUNCTION``; None for any other name."""
    found = CODE_FILE.fullmatch(name)
    return Path(found["file"]) if found else None


def code_sha256(name: str) -> str:
    """The SHA-256 of the file of ``FILE.py:FUNCTION`` in hex. Empty for any other name, and if there is no such
    file.

    The content of that file alone counts. What it imports, and files that it reads, may change unnoticed.
    """
    file = code_file(name)
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else ""
    except OSError:  # whoever runs it says what is wrong with it
        return ""


def code_of(names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of the code of each encoder ``FILE.py:FUNCTION``, by its name; other names are left out."""
    return {name: sha for name in sorted(set(names)) if (sha := code_sha256(name))}


def allow_code(name: str) -> None:
    """Note that the user has named this encoder, for this process and those that it starts."""
    if CODE_FILE.fullmatch(name):
        os.environ[ALLOWED_CODE] = _full_name(name)


def check_code_allowed(name: str) -> None:
    """Refuse code in a file that the user has not named.

    A checkpoint may come from anybody, and that it names a file must not be enough to run it.

    Raises:
        ConfigError: The name is that of code in a file, and the user has not allowed it.
    """
    if CODE_FILE.fullmatch(name) and not _is_allowed(name):
        raise ConfigError(
            f"its encoder is code that would be run, {name}; if you trust it, set {ALLOWED_CODE}="
            f"{_full_name(name)}"
        )


def built(build: Callable[[], Any], name: str) -> Any:
    """What the function ``build`` returns.

    Raises:
        ConfigError: It raised an exception.
    """
    try:
        return build()
    except Exception as error:
        raise ConfigError(f"encoder {name}: its function does not run: {_reason(error)}") from error


def _taken(name: str) -> str:
    """Whose a name is that another package offers: timm's, or one that means something else; "" if it is free.

    It imports timm, so it is asked only where another package's encoder is.
    """
    if ":" in name:
        return "kept for files and for models of the hub"
    if name in OUR_OTHER_NAMES:
        return "wsi_ips' own"
    import timm

    import wsi_ips.models.spinenet.registry  # noqa: F401 - makes SpineNets known to timm

    if not timm.is_model(name):
        return ""
    module = timm.models.model_entrypoint(name).__module__
    return "wsi_ips' own" if module.startswith("wsi_ips.") else "timm's" if module.startswith("timm.") else ""


ENCODER_REGISTRY: Registry[Any] = Registry(
    "encoder",
    ENCODERS,
    group="wsi_ips.encoders",
    problem=lambda member: member.problem if isinstance(member, EncoderEntry) else "",
    taken=_taken,
)
"""All encoders that have a name here. Another package adds one under the entry point group ``wsi_ips.encoders``:
an :class:`EncoderEntry`, or a function without arguments that returns a module (see :func:`named`)."""


def _is_allowed(name: str) -> bool:
    return os.environ.get(ALLOWED_CODE) == _full_name(name)


def _full_name(name: str) -> str:
    """``FILE.py:FUNCTION`` with the absolute path of the file."""
    file, _, function = name.rpartition(":")
    return f"{Path(file).resolve()}:{function}"


def _from_file(name: str) -> Any:
    """The function of ``FILE.py:FUNCTION``. The file is executed."""
    found = CODE_FILE.fullmatch(name)
    assert found is not None
    path = Path(found["file"])
    if not path.is_file():
        raise ConfigError(f"encoder {name}: there is no file {path}")
    specification = importlib.util.spec_from_file_location(f"wsi_ips_encoder_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Dataclasses, among others, look the classes of a file up here.
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"encoder {name}: {path} does not run: {_reason(error)}") from error
    if not hasattr(module, found["function"]):
        raise ConfigError(f"encoder {name}: {path} has no {found['function']}")
    return getattr(module, found["function"])


def _given(found: Any, name: str) -> Any:
    """The entry or module that was found, or that the function that was found returns."""
    if isinstance(found, EncoderEntry):
        if found.problem:
            raise ConfigError(f"encoder {name}: {found.problem}")
        return found
    if not callable(found):
        raise ConfigError(
            f"encoder {name}: is of type {type(found).__name__}, neither a function nor an EncoderEntry"
        )
    return built(found, name)


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", most=200)

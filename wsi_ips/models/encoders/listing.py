"""What is known of the encoders and of their weights on this machine.

The encoders that can be named, in words: what they want, what they give, and whether their weights are here.

Where the weights of a listed encoder are: in a folder, or in the cache of the Hugging Face hub on this
machine.

:func:`hub_weights` finds or downloads them. The client of the hub respects ``HF_HUB_CACHE``, ``HF_HOME`` and
``HF_HUB_OFFLINE``.
"""

import dataclasses
import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

from wsi_ips.config import TransformConfig
from wsi_ips.errors import CheckpointError, ConfigError, one_line
from wsi_ips.models.encoders.entry import HUB, EncoderEntry, TimmArchitecture
from wsi_ips.models.encoders.registry import ENCODER_REGISTRY, ENCODERS, entry_of, known_names
from wsi_ips.progress import quiet_hub
from wsi_ips.registry import did_you_mean

USUAL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names that a weights file usually has on the hub, the preferred one first."""
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".torch", ".ckpt")
"""Suffixes of weights files."""


def hub_weights(entry: EncoderEntry) -> Path:
    """The weights of a listed encoder. They are downloaded once if they are not in the cache and the hub may be
    asked.

    Raises:
        CheckpointError: They cannot be had. The message names the file, and the page with the licence.
    """
    if not entry.sources:
        raise CheckpointError(entry.name, "has no published weights", how_to_get(entry))
    return cached_weights(entry) or _downloaded(entry.sources[0], entry.files, entry.name, how_to_get(entry))


def cached_weights(entry: EncoderEntry) -> Path | None:
    """The weights of a listed encoder in the cache of the hub, or None if they are not there. Never uses the
    network.
    """
    return _cached(entry.sources, entry.files)


def cached_repository(source: str) -> Path | None:
    """The weights of any repository in the cache of the hub, or None. Never uses the network.

    Raises:
        CheckpointError: ``source`` is not the name of a repository.
    """
    return _cached((source.partition("@")[0],), ())


def repository_weights(source: str) -> Path:
    """The weights of any repository, ``organisation/name``, from the cache or downloaded once.

    Raises:
        CheckpointError: They cannot be had, or ``source`` is not the name of a repository.
    """
    fix = f"hf download {source}, or set encoder.weights to a file or a folder; see {HUB}{source}"
    return _cached((source,), ()) or _downloaded(source, USUAL_FILES, source, fix)


def weights_in_folder(folder: Path, files: tuple[str, ...] = ()) -> Path:
    """The weights file in a folder: one of ``files``, one with a usual name, or the only one that there is.

    Raises:
        CheckpointError: There is none, or there are several with other names.
    """
    for name in (*files, *USUAL_FILES):
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES and path.is_file())
    if len(found) == 1:
        return found[0]
    wanted = ", ".join(dict.fromkeys((*files, *USUAL_FILES)))
    raise CheckpointError(
        folder,
        f"holds {len(found)} files of weights and none of {wanted}",
        "name the file that is meant in encoder.weights",
    )


def how_to_get(entry: EncoderEntry) -> str:
    """What a user has to do to get the weights of a listed encoder, in one line."""
    if not entry.sources:
        return "set encoder.weights to their file, or to 'none' for random ones"
    consent = f"accept the licence ({entry.licence}) at {entry.page}, then " if entry.gated else ""
    return (
        f"{consent}hf download {entry.sources[0]} {entry.files[0]}, or set encoder.weights to that file or its "
        f"folder; licence and terms: {entry.page}"
    )


def _cached(sources: tuple[str, ...], files: tuple[str, ...]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for source in sources:
        for name in dict.fromkeys((*files, *USUAL_FILES)):
            try:
                found = try_to_load_from_cache(source, name)
            except HFValidationError as error:
                raise CheckpointError(
                    source, f"is not the name of a repository ({one_line(error, most=120)})"
                ) from None
            if isinstance(found, str) and _is_whole(Path(found)):
                return Path(found)
    return None


def _downloaded(source: str, files: tuple[str, ...], name_of_all: str, fix: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    reasons = []
    for name in files:
        if name.endswith(".index.json"):
            continue  # shards are taken from the cache alone
        try:
            with quiet_hub():
                return Path(hf_hub_download(source, name))
        except Exception as error:  # noqa: BLE001 - whatever the client raises: offline, no consent, no such file
            if isinstance(error, LocalEntryNotFoundError):
                reasons.append(f"{name} is not in the hub's cache, and the hub cannot be asked")
                break  # another file would fare no better
            reasons.append(f"{name}: {one_line(f'{type(error).__name__}: {error}', most=120)}")
            if not isinstance(error, EntryNotFoundError):
                break  # no consent: another file would fare no better
    raise CheckpointError(name_of_all, f"weights are not on this machine ({'; '.join(reasons)})", fix)


def _is_whole(path: Path) -> bool:
    """Whether the shards that an index names are beside it. A file that is not an index is whole."""
    if not path.name.endswith(".index.json"):
        return path.is_file()
    import json

    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return all((path.parent / str(name)).is_file() for name in names)


NARROWEST = 120
OUTPUTS = {"cls": "class token", "cls_mean": "class token, mean of patches", "model": "pooled"}
CHECKED = {
    "run": "built and counted against published figures",
    "inferred": "an argument is derived from published figures",
    "read": "written down from code; not held against published vectors",
}


def list_encoders(*, as_json: bool) -> list[str]:
    """A table of all, or one JSON object a line. What another package offers without metadata is only named."""
    entries, others, plain = [], [], 0
    for name in known_names():
        try:
            entry = entry_of(name)
        except ConfigError as error:
            others.append(str(error))
            continue
        if entry is None:
            others.append(f"{name}: of {ENCODER_REGISTRY.provider(name)}, which says nothing more of it")
            plain += 1
        else:
            entries.append(entry)
    if as_json:
        return [_as_json(entry) for entry in entries]
    summary = f"{len(entries) + plain} encoders; more of one: wsi-ips encoders NAME"
    return [*_table(entries), *others, summary]


def describe_encoder(name: str, *, as_json: bool) -> list[str]:
    """What one encoder wants and gives, and where its weights are or how to get them.

    Raises :class:`ConfigError` for a name that is not listed.
    """
    entry = entry_of(name)
    if entry is None and name in ENCODER_REGISTRY:
        return _plain(name, as_json=as_json)
    if entry is None:
        known = known_names()
        alike = did_you_mean(name, known)
        raise ConfigError(f"no encoder {name!r} is listed; listed are {', '.join(known)}{alike}")
    if as_json:
        return [_as_json(entry)]
    here = cached_weights(entry)
    network = entry.architecture
    built = (
        f"{network.name} {dict(network.arguments)}" if isinstance(network, TimmArchitecture) else "our own"
    )
    return [
        f"{entry.name}: {entry.width} wide, {entry.parameters:,} parameters",
        f"  network: {built}",
        f"  patches: {entry.patch_px} px at {resolutions(entry)} ({entry.mpp_basis})",
        f"  what is done to them: {words_of(entry.transform)}; mean {entry.mean}, deviation {entry.std}",
        f"  embedding: {OUTPUTS[entry.output]}; {entry.prefix_tokens} tokens stand before those of patches",
        f"  precision of its authors: {entry.precision}",
        f"  licence: {entry.licence}"
        + (f"{', asked for at' if entry.gated else ', see'} {entry.page}" if entry.page else ""),
        f"  checked: {CHECKED[entry.checked]}",
        "  weights: its package loads them"
        if entry.brings_weights
        else f"  weights: {here}"
        if here
        else f"  weights: not here; {how_to_get(entry)}",
    ]


def _plain(name: str, *, as_json: bool) -> list[str]:
    """What is known of an encoder that another package offers without metadata. It is not built."""
    origin = ENCODER_REGISTRY.origin(name)
    assert origin is not None
    if as_json:
        return [json.dumps({"name": name, "package": origin.package, "version": origin.version})]
    return [
        f"{name}: a torch module of {origin}, which says nothing of its patches, licence or weights",
        "  patches: set tiling.patch_px and tiling.patch_mpp to what it was trained on",
        "  what is done to them: nothing but model.encoder.transform, mean and std, if you set them",
        "  embedding: what the module returns, as wide as its attribute dim says",
    ]


def words_of(transform: TransformConfig) -> str:
    """A transform in words."""
    steps = []
    if transform.resize is not None:
        antialias = "" if transform.antialias else ", without antialiasing"
        steps.append(f"resized to {transform.resize} px ({transform.interpolation}{antialias})")
    if transform.crop is not None:
        steps.append(f"centre of {transform.crop} px")
    return ", ".join(steps) or "nothing"


def resolutions(entry: EncoderEntry) -> str:
    """``0.5, 0.25 µm per pixel``."""
    return f"{', '.join(f'{mpp:g}' for mpp in entry.mpp)} µm per pixel" if entry.mpp else "any resolution"


def markdown_table() -> list[str]:
    """The lines of the table in ``docs/encoders.md``: ours alone, whatever else is installed."""
    lines = [
        "| name | width | parameters | patch | what is done to it | µm per pixel | embedding | licence |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in ENCODERS.values():
        mpp = ", ".join(f"{each:g}" for each in entry.mpp) or "not stated"
        basis = {"magnification": " (as a magnification)", "convention": " (convention)"}.get(
            entry.mpp_basis, ""
        )
        gate = ", gated" if entry.gated else ""
        lines.append(
            f"| `{entry.name}` | {entry.width} | {entry.parameters / 1e6:,.1f} M | {entry.patch_px} px "
            f"| {words_of(entry.transform)} | {mpp}{basis} | {OUTPUTS[entry.output]} "
            f"| [{entry.licence}]({entry.page}){gate} |"
        )
    return lines


def _as_json(entry: EncoderEntry) -> str:
    fields: dict[str, Any] = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    network = fields.pop("architecture")
    fields["architecture"] = (
        {"name": network.name, "arguments": dict(network.arguments), "stage": network.stage}
        if isinstance(network, TimmArchitecture)
        else {"name": str(network.build)}
    )
    here = cached_weights(entry)
    fields["transform"] = entry.transform.model_dump()
    return json.dumps({**fields, "page": entry.page, "weights": here and str(here)})


def _table(entries: list[EncoderEntry]) -> list[str]:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "width", "parameters", "patch", "µm", "embedding", "licence", "weights"):
        table.add_column(column, justify="right" if column in ("width", "parameters", "patch") else "left")
    for entry in entries:
        table.add_row(
            entry.name,
            str(entry.width),
            f"{entry.parameters / 1e6:,.1f} M",
            f"{entry.patch_px} px",
            ", ".join(f"{mpp:g}" for mpp in entry.mpp) or "any",
            OUTPUTS[entry.output],
            f"{entry.licence}{', gated' if entry.gated else ''}",
            "its package's" if entry.brings_weights else "here" if cached_weights(entry) else "not here",
        )
    width = max(NARROWEST, shutil.get_terminal_size((NARROWEST, 24)).columns)
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]

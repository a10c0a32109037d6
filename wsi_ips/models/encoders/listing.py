"""The encoders that can be named, in words: what they want, what they give, and whether their weights are here."""

import dataclasses
import json
import shutil
from io import StringIO
from typing import Any

from wsi_ips.config import TransformConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.encoders.entry import EncoderEntry, TimmArchitecture
from wsi_ips.models.encoders.hub import cached_weights, how_to_get
from wsi_ips.models.encoders.registry import ENCODERS, entry_of, known_names
from wsi_ips.registry import did_you_mean

NARROWEST = 120
OUTPUTS = {"cls": "class token", "cls_mean": "class token, mean of patches", "model": "pooled"}
CHECKED = {
    "run": "built and counted against published figures",
    "inferred": "an argument is derived from published figures",
    "read": "written down from code; not held against published vectors",
}


def list_encoders(*, as_json: bool) -> list[str]:
    """A table of all, or one JSON object a line. What another package offers without metadata is only named."""
    entries, others = [], []
    for name in known_names():
        try:
            entry = entry_of(name)
        except ConfigError as error:
            others.append(str(error))
            continue
        if entry is None:
            others.append(f"{name}: of another package, which says nothing more of it")
        else:
            entries.append(entry)
    if as_json:
        return [_as_json(entry) for entry in entries]
    summary = f"{len(entries)} encoders; more of one: wsi-ips encoders NAME"
    return [*_table(entries), *others, summary]


def describe_encoder(name: str, *, as_json: bool) -> list[str]:
    """What one encoder wants and gives, and where its weights are or how to get them.

    Raises :class:`ConfigError` for a name that is not listed.
    """
    entry = entry_of(name)
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
        f"  licence: {entry.licence}{', asked for at' if entry.gated else ', see'} {entry.page}",
        f"  checked: {CHECKED[entry.checked]}",
        f"  weights: {here}" if here else f"  weights: not here; {how_to_get(entry)}",
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
            "here" if cached_weights(entry) else "not here",
        )
    width = max(NARROWEST, shutil.get_terminal_size((NARROWEST, 24)).columns)
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]

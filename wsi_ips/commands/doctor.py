"""``doctor``: whether this installation works, line by line, and what to change where it does not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.commands.options import Outcome, finish

A_FAULT = 1
"""Exit code where a fault was found."""


def command(
    folder: Annotated[
        list[Path] | None,
        typer.Option(help="A folder of slides or results: its locks, space and speed; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with all findings.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out how fast things are.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Also ask the Hugging Face hub whether it answers.")
    ] = False,
) -> None:
    """Check this installation: versions, devices, codecs, folders, speed; exit code 1 where a fault is found."""
    finish(diagnose(folder or (), as_json=as_json, quick=quick, online=online))


def diagnose(folders: Sequence[Path], *, as_json: bool, quick: bool, online: bool) -> Outcome:
    """Do all checks. Their lines are printed as they are found, the summary is the outcome's.

    The exit code is 0 without a fault, whatever the warnings, and 1 with one.
    """
    from wsi_ips.doctor.findings import examine, worst
    from wsi_ips.doctor.folders import folder_checks
    from wsi_ips.doctor.machine import machine_checks
    from wsi_ips.doctor.pixels import pixel_checks
    from wsi_ips.doctor.speed import speed_checks
    from wsi_ips.errors import harmless

    checks = [
        *machine_checks(online=online),
        *pixel_checks(),
        *folder_checks([path.absolute() for path in folders], quick=quick),
        *([] if quick else speed_checks()),
    ]
    findings = []
    for finding in examine(checks):
        findings.append(finding)
        if not as_json:
            typer.echo(harmless(str(finding)))
    status = worst(findings)
    counts = {
        kind: sum(finding.status == kind for finding in findings) for kind in ("ok", "warning", "fault")
    }
    told = [
        f"{counts['ok']} ok",
        *(f"{counts[kind]} {kind}{'s' * (counts[kind] != 1)}" for kind in ("warning", "fault")),
    ]
    summary = f"{len(findings)} checks: {', '.join(told)}"
    if as_json:
        summary = json.dumps(
            {"status": status, "findings": [finding.to_json() for finding in findings]}, indent=2
        )
    return Outcome([summary], A_FAULT if status == "fault" else 0)

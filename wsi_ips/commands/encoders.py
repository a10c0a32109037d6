"""``encoders``: the list of encoders that can be named."""

from typing import Annotated

import typer

from wsi_ips.commands.command_line import encoder_names
from wsi_ips.commands.options import Outcome, finish


def command(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One of them, to say all about it; none: list all.", autocompletion=encoder_names
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per encoder.")] = False,
) -> None:
    """List the encoders that --encoder takes by name: sizes, µm, licences, and whether their weights are here."""
    from wsi_ips.models.encoders.listing import describe_encoder, list_encoders

    finish(
        Outcome(list_encoders(as_json=as_json) if name is None else describe_encoder(name, as_json=as_json))
    )

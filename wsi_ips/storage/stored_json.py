"""JSON files that a command left and another reads, checked against what they should hold."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from wsi_ips.config.section import first_problem
from wsi_ips.errors import FileError
from wsi_ips.storage.files import check_size

Model = TypeVar("Model", bound=BaseModel)


def read_stored_json(
    path: Path, model: type[Model], error: type[FileError], *, what: str, most: int, fix: str
) -> Model:
    """Read a JSON file that is there.

    Args:
        path: The file.
        model: What it should hold.
        error: What is raised if it does not.
        what: What the file should be, for the message: ``evaluation``.
        most: The largest file that is read, in bytes.
        fix: What the user should do about a wrong file.

    Raises:
        FileError: The given kind of it. The file is larger, no JSON, or holds something else. The message names
            the first wrong value.
    """
    check_size(path, error, most=most, fix=fix)
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as wrong:
        raise error(path, f"is no {what} ({first_problem(wrong, most=200)})", fix) from None

"""What ``make docs`` adds to the pages: the reference of commands and settings, made from the code.

MkDocs calls the ``on_`` functions (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

import json
import re
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    "Patches": ["TilingConfig", "TissueConfig"],
    "Reading slides": ["StreamingConfig"],
    "Selection": ["SelectionConfig", "CoarseConfig", "SamplingConfig"],
    "Model": ["ModelConfig", "EncoderConfig", "AttentionConfig", "TaskConfig"],
    "Training": ["TrainingConfig", "HeadStartConfig", "AugmentConfig", "AgainstCollapseConfig"],
    "Sharing slides out": ["BatchConfig"],
}
OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+(?:ARCHITECTURE|CONTRIBUTING|README|CHANGELOG)\.md[^)]*\)")
"""Links to files beside docs/, which the site does not have."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the two pictures that lie beside the benchmarks."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/settings.md", content=settings_page()))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=notebook_page(notebook)))
    for name in ("memory.png", "memory_select.png"):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / "benchmarks" / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files beside docs/ lead nowhere on the site: their text stays."""
    return OUTSIDE.sub(r"\1", markdown.replace("](../benchmarks/memory", "](memory"))


def notebook_page(path: Path) -> str:
    """A notebook as a page: its texts, and its code without outputs. Links to notebooks lead to their pages."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text.replace(".ipynb)", ".md)"))
        else:
            parts.append(f"```python\n{text}\n```")
    title, *rest = parts
    return "\n\n".join([title, f"[Download this notebook]({path.name})", *rest]) + "\n"


def commands_page() -> str:
    """Every command with its ``--help``."""
    from wsi_ips.commands.application import app

    group: Any = typer.main.get_command(app)
    parts = ["# Commands\n\nWhat `wsi-ips COMMAND --help` prints.\n"]
    parts += list(_helps(group, "wsi-ips"))
    return "\n".join(parts)


def _helps(group: Any, name: str) -> Any:
    context = group.context_class(group, info_name=name)
    for title in group.list_commands(context):
        command = group.get_command(context, title)
        full = f"{name} {title}"
        if hasattr(command, "list_commands"):
            yield from _helps(command, full)
            continue
        inner = command.context_class(command, info_name=full, max_content_width=100, terminal_width=100)
        yield f"## {full}\n\n```text\n{command.get_help(inner)}\n```\n"


def settings_page() -> str:
    """Every section of the settings with its keys, types, defaults and what they do."""
    from wsi_ips import config as settings
    from wsi_ips.config.section import Section
    from wsi_ips.config.training import HeadStartConfig

    sections = {name: kind for name, kind in vars(settings).items() if isinstance(kind, type)}
    sections["HeadStartConfig"] = HeadStartConfig
    package: Any = griffe.load("wsi_ips.config", search_paths=[str(ROOT)])
    parts = [
        "# Settings\n\nThe keys of a recipe, and of `--set section.key=value`.",
        "Recipes in `pipelines/` are examples; they come with the package, which finds them by their names.\n",
    ]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        for name in names:
            section = sections[name]
            if not issubclass(section, Section):
                raise TypeError(f"{name} is no section of the settings")
            documented = package[f"{section.__module__.removeprefix('wsi_ips.config.')}.{name}"]
            parts.append(f"### {name}\n\n{_plain(documented.docstring)}\n")
            parts.append("| key | default | what it does |\n|---|---|---|")
            for key, field in section.model_fields.items():
                member = documented.members.get(key)
                text = _plain(member.docstring).replace("\n", " ") if member is not None else ""
                default = "required" if field.is_required() else f"`{_short(field.default)}`"
                parts.append(f"| `{key}` | {default} | {text.replace('|', chr(92) + '|')} |")
            parts.append("")
    return "\n".join(parts)


def _short(default: Any) -> str:
    from pydantic import BaseModel

    """A default as a recipe has it; a whole section has a table of its own."""
    return "…" if isinstance(default, BaseModel) else str(default).replace("|", "/")


def _plain(docstring: Any) -> str:
    """A docstring as Markdown: its double backticks become single ones, roles become code."""
    if docstring is None:
        return ""
    text = re.sub(r":(?:class|func|meth|attr|data):`~?([^`]+)`", r"`\1`", docstring.value)
    return str(text.replace("``", "`").strip())

"""Extension points: members that are found by name and imported when they are first needed.

The core has places where something can be added: a slide reader, an encoder, a selector, an exporter, a layer of
the viewer. Each place is a :class:`Registry`. It knows the names of the members that come with wsi_ips and the
entry point group under which other packages add theirs. A member stays the text ``"module:attribute"`` until
somebody asks for it, so the core never imports its wings and never waits for a package that is not needed.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Generic, TypeVar, cast

from wsi_ips.errors import ConfigError, ExtensionBroken

Member = TypeVar("Member")
"""What the members of a registry are."""


class Registry(Generic[Member]):
    """The members of one extension point, by name.

    Args:
        kind: What a member is, for error messages, for example ``"selector"``.
        members: The members that come with wsi_ips, as ``{name: "module:attribute"}``. Another package cannot
            replace one of these names.
        group: The entry point group under which other packages add members. None if nothing can be added from
            outside.
    """

    def __init__(self, kind: str, members: Mapping[str, str], *, group: str | None = None) -> None:
        self.kind = kind
        self.members: Mapping[str, str] = MappingProxyType(dict(members))
        self.group = group
        self._loaded: dict[str, Member] = {}

    def names(self) -> list[str]:
        """The names of all members: those of wsi_ips in their order, then those of other packages, sorted."""
        return [*self.members, *(entry.name for entry in self.others())]

    def others(self) -> list[EntryPoint]:
        """The entry points of members that other packages add, sorted by name."""
        if self.group is None:
            return []
        found = {entry.name: entry for entry in entry_points(group=self.group)}
        return [found[name] for name in sorted(found) if name not in self.members]

    def load(self, name: str) -> Member:
        """Import the member of this name and return it. A second call returns the same object.

        Raises:
            ConfigError: There is no member of this name. The message lists the known names.
            ExtensionBroken: The member belongs to another package and importing it failed.
            ImportError: The member belongs to wsi_ips and needs a package that is not installed.
        """
        if name not in self._loaded:
            self._loaded[name] = self._import(name)
        return self._loaded[name]

    def _import(self, name: str) -> Member:
        if name in self.members:
            module, _, attribute = self.members[name].partition(":")
            return cast(Member, getattr(import_module(module), attribute))
        for entry in self.others():
            if entry.name == name:
                package = entry.dist.name if entry.dist else entry.value
                try:
                    return cast(Member, entry.load())
                except Exception as error:
                    raise ExtensionBroken(self.kind, name, package, str(error)) from error
        raise ConfigError(f"there is no {self.kind} {name!r}; known are {', '.join(self.names())}")

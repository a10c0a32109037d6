"""Members that are found by name and loaded when they are first asked for.

The core offers places where something can be added: a reader, an encoder, a selector, an export, a layer of the
viewer. Each place is a :class:`Registry`: names of the members that come with wsi_ips, and the entry point group
under which other packages add theirs. A member is the text ``module:attribute`` until somebody asks for it, so
that the core neither imports its wings nor waits for packages that are not needed.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Generic, TypeVar, cast

from wsi_ips.errors import ConfigError, ExtensionBroken

Member = TypeVar("Member")


class Registry(Generic[Member]):
    """Members of one kind, by name.

    kind: what a member is, for messages, e.g. ``"selector"``. members: ``{name: "module:attribute"}`` of those
    that come with wsi_ips. group: the entry point group under which other packages add members; None for a place
    where nothing is added from outside. A name that wsi_ips has stays its own.
    """

    def __init__(self, kind: str, members: Mapping[str, str], *, group: str | None = None) -> None:
        self.kind = kind
        self.members: Mapping[str, str] = MappingProxyType(dict(members))
        self.group = group
        self._loaded: dict[str, Member] = {}

    def names(self) -> list[str]:
        """All names: those of wsi_ips in their order, then those of other packages."""
        return [*self.members, *(entry.name for entry in self.others())]

    def others(self) -> list[EntryPoint]:
        """The members that other packages add, by name."""
        if self.group is None:
            return []
        found = {entry.name: entry for entry in entry_points(group=self.group)}
        return [found[name] for name in sorted(found) if name not in self.members]

    def load(self, name: str) -> Member:
        """The member of this name.

        Raises :class:`ConfigError` for a name that nobody has, :class:`ExtensionBroken` where another package's
        member does not load, and ``ImportError`` where a package that a member of wsi_ips needs is not installed.
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

"""Members that are found by name and loaded when they are first asked for.

The core offers places where something can be added: a reader, an encoder, an aggregator, a selector, an exporter,
a tissue segmenter, a layer of the viewer. Each place is a :class:`Registry`: the names of the members that come
with wsi_ips, and the entry point group under which other packages add theirs. A member is the text
``module:attribute`` until somebody asks for it, so that the core neither imports its wings nor waits for packages
that are not needed.

``docs/extending.md`` shows how another package adds one of each.
"""

import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Generic, TypeVar, cast

from wsi_ips.errors import ConfigError, ExtensionBroken, NameTaken, WsiIpsError, one_line

Member = TypeVar("Member")

LONGEST_NAME = 100
"""Characters of a name that are compared with the known ones."""
MOST_COMPARED = 1000
"""How many known names are compared with a name: those of a table may come from anybody."""
LONGEST_REASON = 200
"""Characters of what another package's code raised that are repeated in a message."""


class Registry(Generic[Member]):
    """Members of one kind, by name.

    A name that wsi_ips has stays its own, whatever another package offers under it (:meth:`Registry.ignored` lists
    such offers). A name that two packages offer is nobody's: it is an error to ask for it.

    Parameters
    ----------
    kind: what a member is, for messages, e.g. ``"selector"``.
    members: those that come with wsi_ips, in the order in which they are tried and listed:
        ``{name: "module:attribute"}``, or the member itself where it is only data.
    group: the entry point group under which other packages add members; None: nothing is added from outside.
    extras: ``{name: what to install}`` for members of wsi_ips whose packages are optional.
    needs: ``{name: module}`` that a member of wsi_ips imports only when it is used, so that it is missed at once.
    not_installed: makes the error for a member of wsi_ips whose package is not installed, from the member's name
        and what to install. None: the ``ImportError`` itself is raised.
    broken: makes the error for another package's member that does not load, from the member's name, the package
        and the reason. None: :class:`ExtensionBroken`.
    problem: says what is wrong with a loaded member of another package, "" for nothing. It is asked once, when the
        member is loaded.
    taken: says whose a name is that is neither among ``members`` nor another package's to give, e.g. ``"timm's"``;
        "" for a free one. It is asked only about names that another package offers.
    """

    def __init__(
        self,
        kind: str,
        members: Mapping[str, str] | Mapping[str, Member],
        *,
        group: str | None = None,
        extras: Mapping[str, str] = MappingProxyType({}),
        needs: Mapping[str, str] = MappingProxyType({}),
        not_installed: Callable[[str, str], WsiIpsError] | None = None,
        broken: Callable[[str, str, str], WsiIpsError] | None = None,
        problem: Callable[[object], str] = lambda member: "",
        taken: Callable[[str], str] = lambda name: "",
    ) -> None:
        self.kind = kind
        self.members: Mapping[str, str | Member] = MappingProxyType(dict(members))
        self.group = group
        self._extras = MappingProxyType(dict(extras))
        self._needs = MappingProxyType(dict(needs))
        self._not_installed = not_installed
        self._broken = broken
        self._problem = problem
        self._taken = taken
        self._others: dict[tuple[str, str], Member] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.members or any(entry.name == name for entry in self.others())

    def ignored(self) -> list[str]:
        """One line for each member of another package that cannot be had, since its name is somebody else's."""
        if self.group is None:
            return []
        lines = [
            f"{self.kind} {entry.name} of {provider_of(entry)} is ignored: the name is {whose}"
            for entry in sorted(_offered(entry_points, self.group, _places()), key=lambda entry: entry.name)
            if (whose := "wsi_ips' own" if entry.name in self.members else self._taken(entry.name))
        ]
        return [
            *lines,
            *(str(self._offered_twice(entry)) for entry in self.others() if self._rivals(entry.name)),
        ]

    def is_shadowed(self, name: str) -> bool:
        """Whether another package offers a member under a name that is not its to give."""
        return self.group is not None and any(
            entry.name == name and (name in self.members or self._taken(name))
            for entry in _offered(entry_points, self.group, _places())
        )

    def origin(self, name: str) -> "Origin | None":
        """The package that the member comes from; None for those of wsi_ips, and for unknown names."""
        if name in self.members:
            return None
        return next((origin_of(entry) for entry in self.others() if entry.name == name), None)

    def provider(self, name: str) -> str:
        """``the package NAME VERSION`` for a member of another package; ``wsi_ips`` for one of ours."""
        origin = self.origin(name)
        return "wsi_ips" if origin is None else str(origin)

    def names(self) -> list[str]:
        """All names: those of wsi_ips in their order, then those of other packages."""
        return [*self.members, *(entry.name for entry in self.others())]

    def others(self) -> list[EntryPoint]:
        """The members that other packages add, in the order of their names; none of them is loaded.

        A name that two packages offer stands there once; :meth:`load` refuses it.
        """
        return [] if self.group is None else outside(self.group, self.members)

    def load(self, name: str) -> Member:
        """The member of this name.

        Raises :class:`ConfigError` for a name that nobody has, :class:`ExtensionBroken` (or what ``broken`` makes)
        where another package's member does not load, :class:`NameTaken` where two packages offer the name or it is
        not the package's to give, and ``ImportError`` (or what ``not_installed`` makes) where a
        package that a member of wsi_ips needs is not installed.
        """
        if name in self.members:
            return self._ours(name)
        for entry in self.others():
            if entry.name == name:
                return self._theirs(entry)
        raise self.unknown(name)

    def unknown(self, name: str) -> ConfigError:
        """The error for a name that nobody has."""
        known = self.names()
        return ConfigError(
            f"there is no {self.kind} {name!r}; known are {', '.join(known)}{did_you_mean(name, known)}"
        )

    def _ours(self, name: str) -> Member:
        found = self.members[name]
        if not isinstance(found, str):
            return found
        module, _, attribute = found.partition(":")
        try:
            loaded = import_module(module)
            if name in self._needs:
                import_module(self._needs[name])
        except ImportError as error:
            if self._not_installed is None:
                raise
            # openslide-python without its library says so in an ImportError without a name.
            raise self._not_installed(name, self._extras.get(name, error.name or name)) from error
        return cast(Member, getattr(loaded, attribute))

    def _rivals(self, name: str) -> list[EntryPoint]:
        """The entry points of several packages with this name; none if only one package offers it."""
        assert self.group is not None
        offered = [entry for entry in _offered(entry_points, self.group, _places()) if entry.name == name]
        return offered if len({origin_of(entry).package for entry in offered}) > 1 else []

    def _offered_twice(self, entry: EntryPoint) -> NameTaken:
        packages = ", ".join(sorted({origin_of(rival).package for rival in self._rivals(entry.name)}))
        return NameTaken(
            f"{self.kind} {entry.name} is offered by several packages: {packages}; uninstall all but one of them"
        )

    def _theirs(self, entry: EntryPoint) -> Member:
        if self._rivals(entry.name):
            raise self._offered_twice(entry)
        if (entry.name, entry.value) not in self._others:
            if whose := self._taken(entry.name):
                raise NameTaken(
                    f"{self.kind} {entry.name}: this name is {whose}, and {provider_of(entry)} offers another "
                    f"{self.kind} under it; uninstall the package, or have it renamed there"
                )
            try:
                member = entry.load()
                problem = self._problem(member)
            except Exception as error:
                reason = one_line(f"{type(error).__name__}: {error}", most=LONGEST_REASON)
                raise self._is_broken(entry, reason) from error
            if problem:
                raise self._is_broken(entry, problem)
            self._others[entry.name, entry.value] = member
        return self._others[entry.name, entry.value]

    def _is_broken(self, entry: EntryPoint, reason: str) -> WsiIpsError:
        package = origin_of(entry).package
        if self._broken is not None:
            return self._broken(entry.name, package, reason)
        return ExtensionBroken(self.kind, entry.name, package, reason)


@dataclass(frozen=True, slots=True)
class Origin:
    """A package that offers a member, and its version ("" where it says none)."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"the package {self.package} {self.version}".rstrip()


def origin_of(entry: EntryPoint) -> Origin:
    """The package of an entry point; its module where no package is known."""
    return Origin(entry.dist.name, entry.dist.version) if entry.dist else Origin(entry.module, "")


def provider_of(entry: EntryPoint) -> str:
    """``the package NAME VERSION`` of an entry point."""
    return str(origin_of(entry))


def outside(group: str, ours: Container[str]) -> list[EntryPoint]:
    """The entry points of this group, sorted by name, one for each name that is not among ``ours``."""
    found: dict[str, EntryPoint] = {}
    for entry in _offered(entry_points, group, _places()):
        if entry.name not in ours:
            found.setdefault(entry.name, entry)
    return [found[name] for name in sorted(found)]


def _places() -> tuple[tuple[str, int], ...]:
    """Where packages are looked for, and when something was last added to or removed from each of the folders."""
    return tuple((place, _changed_ns(place)) for place in sys.path)


def _changed_ns(place: str) -> int:
    try:
        return Path(place).stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _offered(
    ask: Callable[..., Iterable[EntryPoint]], group: str, places: tuple[tuple[str, int], ...]
) -> tuple[EntryPoint, ...]:
    """The entry points of a group. Asking takes milliseconds, since it reads a file of every installed package, so
    it is done once for each state of the places."""
    return tuple(ask(group=group))


def check_known(kind: str, name: str, ours: tuple[str, ...], *, group: str) -> str:
    """``name`` if it is one of ``ours`` or another package offers it; nothing is loaded.

    For settings that name a member: they are checked where the registry's own modules are too heavy to import.
    Raises :class:`ConfigError`.
    """
    if name not in ours and name not in (others := [entry.name for entry in outside(group, ours)]):
        known = [*ours, *others]
        raise ConfigError(
            f"there is no {kind} {name!r}; known are {', '.join(known)}{did_you_mean(name, known)}"
        )
    return name


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean KNOWN?`` with the known name that is spelled most like ``name``, whatever its case; "" if
    none is like it.
    """
    lower = {one.lower(): one for one in islice(known, MOST_COMPARED)}
    alike = get_close_matches(name[:LONGEST_NAME].lower(), list(lower), n=1)
    return f"; did you mean {lower[alike[0]]}?" if alike else ""

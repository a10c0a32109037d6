"""Inputs that once failed, as data: a seed and what is changed in it, or the whole of a small file.

A file of JSON each in ``tests/fuzz/corpus``. Edits count bytes, so they mean something on the very bytes that they
were found on: the digest of the edited files stands beside them, and where other versions of the libraries write
these otherwise, the entry is not what it was.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.edits import Edit, Files, apply, packed, unpacked
from tests.fuzz.seeds import SEEDS, seed

CORPUS = Path(__file__).parent / "corpus"
WHOLE_BELOW = 4000
"""Bytes: smaller inputs are stored whole, and depend on no library's version."""


@dataclass(frozen=True, slots=True)
class Entry:
    """found: what was wrong, in one line. whole: the files themselves, where they are small; else seed and edits.

    digest: of those of the seed's files that are edited.
    """

    target: str
    found: str = ""
    seed: str = ""
    digest: str = ""
    edits: Sequence[Edit] = ()
    whole: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, target: str, seed_name: str, edits: Sequence[Edit], *, found: str = "") -> "Entry":
        return cls(target, found, seed_name, digest_of(edited(seed_name, edits)), tuple(edits))

    def files(self) -> Files:
        return self.whole or apply(seed(self.seed), self.edits)

    @property
    def stale(self) -> bool:
        """Whether what is edited is written otherwise than when this was found."""
        if self.whole:
            return False
        return self.seed not in SEEDS or digest_of(edited(self.seed, self.edits)) != self.digest

    def write(self, folder: Path) -> Path:
        """Write ``<target>-<digest>.json``; a small input as its files."""
        files = self.files()
        held = {"target": self.target, "found": self.found}
        content: Mapping[str, object]
        if sum(map(len, files.values())) < WHOLE_BELOW:
            content = {
                **held,
                "seed": self.seed,
                "whole": {name: packed(data) for name, data in files.items()},
            }
        else:
            content = {
                **held,
                "seed": self.seed,
                "digest": self.digest,
                "edits": [each.to_json() for each in self.edits],
            }
        text = json.dumps(content, indent=1)
        name = re.sub(r"[^a-z0-9]+", "_", self.found.split(" | ")[0].lower())[:40].strip("_")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.target}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}.json"
        path.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> "Entry":
        held = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            held["target"],
            held["found"],
            held.get("seed", ""),
            held.get("digest", ""),
            tuple(Edit.from_json(each) for each in held.get("edits", ())),
            {name: unpacked(text) for name, text in held.get("whole", {}).items()},
        )


def edited(seed_name: str, edits: Sequence[Edit]) -> Files:
    """Those of a seed's files that are edited: what else is in it may change."""
    names = {each.file for each in edits}
    return {name: data for name, data in seed(seed_name).items() if name in names}


def digest_of(files: Files) -> str:
    """Of names and contents."""
    whole = hashlib.sha256()
    for name, data in sorted(files.items()):
        whole.update(name.encode("utf-8", "surrogateescape") + b"\0" + hashlib.sha256(data).digest())
    return whole.hexdigest()[:16]


def stored(folder: Path = CORPUS) -> dict[str, Entry]:
    """{name: entry} of all that once failed."""
    return {path.stem: Entry.read(path) for path in sorted(folder.glob("*.json"))}

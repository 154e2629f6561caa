"""The run directory: every stage reads finished files and writes finished files, so that running
the same command again goes on where the last one stopped. Knows no model and no method, only rows
and directories.

Each stage is `make`, a function that all ranks call and that gives all of them the same answer. The
main rank alone writes; what it decides (done before? damaged? no room?) is told to all, so that all
do the same.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from loop import branch, files, identity, lock
from loop.manifest import Manifest
from loop.rows import Row
from loop.together import Group, main_says

Rows = Sequence[Mapping[str, Any]]
Keep = Callable[[int, Callable[[], Rows]], list[Row]]
Finish = Callable[[list[Row]], Rows | tuple[Rows, Row]]
T = TypeVar("T")


class Run:
    """An open run directory; `root` is its path. Use as a context, or `close` it."""

    def __init__(self, root: Path, group: Group) -> None:
        self.root = root
        self.group = group
        self._stages: dict[str, Row] = {}  # every rank's copy of the record
        self._manifest: Manifest  # the main rank's alone
        self._lock: int | None = None  # the main rank's alone

    @classmethod
    def open(
        cls,
        directory: str | Path,
        settings: Mapping[str, Any],
        group: Group,
        *,
        inputs: Mapping[str, Path] | None = None,
        may_change: Collection[str] = (),
        origin: branch.Origin | None = None,
    ) -> "Run":
        """Starts a run in `directory`, or takes up the one that is there.

        `settings` (plain JSON values) and the contents of `inputs` make the run what it is: if they
        differ from config.json, other than in the dotted keys `may_change`, ValueError shows how.
        ValueError too for a directory that another run works in, or that holds something else.
        A new run with an `origin` begins with what was made there (`loop.branch`).
        """
        run = cls(Path(directory), group)
        asked = settings, inputs or {}, may_change, origin
        run._stages = run._main_says(lambda: run._take_up(*asked))
        return run

    def rows(
        self, path: str, make: Callable[[], Rows | tuple[Rows, Row]], description: str
    ) -> list[Row]:
        """The rows of the JSONL file `path`: as finished before, or from `make`, which returns rows
        or (rows, counts).
        """
        data = self._find(path, description)
        return files.read_jsonl(self._keep(path, make, description) if data is None else data)

    def rows_in_rounds(
        self, path: str, make: Callable[[Keep], Rows | tuple[Rows, Row]], description: str
    ) -> list[Row]:
        """As `rows`, in rounds that build on each other: `make(keep)` gets each round's rows from
        `keep(number, make_round)`, which are there again after an interruption.
        """

        def keep(number: int, make_round: Callable[[], Rows]) -> list[Row]:
            title = f"{description}, round {number + 1}"
            return self.rows(f"{path}.units/round{number}.jsonl", make_round, title)

        return self._in_parts(path, partial(make, keep), description)

    def rows_in_units(
        self,
        path: str,
        items: Sequence[T],
        make: Callable[[list[Sequence[T]]], Iterable[Rows]],
        description: str,
        *,
        unit: int,
        finish: Finish | None = None,
    ) -> list[Row]:
        """As `rows`, where each item's rows depend on that item alone: kept after every `unit`
        items, so that an interruption costs little more than one unit. `make(parts of items)` gives
        each part's rows in turn; it may have begun the next by then. `finish`: makes the stage's
        rows of all items' rows, where they are not its rows themselves.
        """
        parts = {
            f"{path}.units/{start}-{start + unit}.jsonl": items[start : start + unit]
            for start in range(0, len(items), unit)
        }

        def make_units() -> list[Row]:
            found = {name: self._find(name, description) for name in parts}
            made = iter(make([part for name, part in parts.items() if found[name] is None]))
            rows: list[Row] = []
            for number, (name, data) in enumerate(found.items(), start=1):
                if data is None:
                    title = f"{description}, part {number} of {len(parts)}"
                    data = self._keep(name, lambda: next(made), title)
                rows += files.read_jsonl(data)
            return rows

        make_all = (lambda: finish(make_units())) if finish else make_units
        return self._in_parts(path, make_all, description)

    def json(self, path: str, make: Callable[[], Mapping[str, Any]], description: str) -> Row:
        """The object in the JSON file `path`: as finished before, or from `make()`."""
        data = self._find(path, description)
        if data is None:
            started = time.perf_counter()
            data = files.json_bytes(make())
            self._commit(path, partial(self._put, path, data), started, {}, description)
        return dict(files.read_json(data))

    def directory(self, path: str, make: Callable[[Path], Row | None], description: str) -> Path:
        """The directory `path` (a checkpoint): finished before, or as `make(unfinished)` fills it.

        `unfinished` outlives an interruption, so `make` may find there what it kept to go on from,
        `files.TO_GO_ON`. All else that it leaves there is committed as one; it may return counts.
        """
        full, unfinished = self.root / path, self.root / f"{path}.unfinished"
        if self._find(path, description) is None:
            started = time.perf_counter()
            self._main_says(lambda: files.begin(unfinished, full))
            counts = make(unfinished) or {}
            self.group.barrier()  # the other ranks too have written what they write
            self._commit(
                path, partial(files.move_in, unfinished, full), started, counts, description
            )
        return full

    def copy(self, path: str, source: Path, counts: Row, description: str) -> Path:
        """As `directory`, filled with the files of the finished directory `source`, but for those
        further inside.
        """

        def make(out: Path) -> Row:
            self._main_says(lambda: files.share_files(source, out))
            return counts

        return self.directory(path, make, description)

    def publish(self, path: str, data: bytes) -> None:
        """Writes a file that is no stage: made anew each time from what the stages hold."""
        self._main_says(lambda: files.write(self.root / path, data))

    def has(self, path: str) -> bool:
        """Whether the stage `path` is finished."""
        return path in self._stages

    def read(self, path: str) -> bytes:
        """The bytes of the finished file `path`, as they are on the disk."""
        return (self.root / path).read_bytes()

    def seconds(self, path: str) -> float:
        """How long the finished stage `path` took."""
        return float(self._stages[path]["seconds"])

    def counts(self, path: str) -> Row:
        """The counts that the finished stage `path` returned beside its rows."""
        return dict(self._stages[path]["counts"])

    def stages(self, directory: str) -> list[str]:
        """The finished stages inside a directory, by their names in it, in the order of
        finishing.
        """
        inside = f"{directory}/"
        return [path.removeprefix(inside) for path in self._stages if path.startswith(inside)]

    def say(self, line: str) -> None:
        """Prints a line, once for all ranks."""
        if self.group.is_main:
            with tqdm.external_write_mode():  # a unit is kept while the next is in progress
                print(line, flush=True)

    def close(self) -> None:
        """Lets another run have the directory."""
        if self._lock is not None:
            lock.release(self._lock)
            self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _in_parts(
        self, path: str, make: Callable[[], Rows | tuple[Rows, Row]], description: str
    ) -> list[Row]:
        """As `rows`; what `make` kept beside the path is forgotten when all is there."""
        folder, data = f"{path}.units", self._find(path, description)
        if data is None:
            parts = [name for name in self._stages if name.startswith(f"{folder}/")]
            earlier = sum(map(self.seconds, parts))
            data = self._keep(path, make, description, earlier)
        self._stages = self._main_says(lambda: self._drop_units(folder))
        return files.read_jsonl(data)

    def _keep(
        self,
        path: str,
        make: Callable[[], Rows | tuple[Rows, Row]],
        description: str,
        earlier: float = 0.0,
    ) -> bytes:
        """Makes the rows of the file `path` and commits them; its bytes."""
        started = time.perf_counter() - earlier
        made = make()
        rows, counts = made if isinstance(made, tuple) else (made, {})
        data = files.jsonl_bytes(rows)
        self._commit(path, partial(self._put, path, data), started, counts, description)
        return data

    def _find(self, path: str, description: str) -> bytes | None:
        """The bytes of the finished file (b"" for a directory); None if the stage is to be done."""

        def look() -> bytes | None:
            full, faults = self.root / path, self._manifest.faults(path)
            for fault in faults or []:
                self.say(f"{fault}; it is made again")
            if faults is not None:
                files.forget(full)  # killed just after it was recorded
            if faults is None or faults:
                return None
            self.say(f"{description}: done before ({path})")
            return full.read_bytes() if full.is_file() else b""

        return self._main_says(look)

    def _commit(
        self, path: str, put: Callable[[], list[str]], started: float, counts: Row, description: str
    ) -> None:
        """Puts a finished stage in its place, and only then records it."""

        def commit() -> dict[str, Row]:
            names = put()
            seconds = time.perf_counter() - started
            if self._manifest.record(path, names, seconds, counts):
                self.say(
                    f"{self.root / path}: not what it was before; what came after it is made again"
                )
                for begun in (*self.root.glob("*.unfinished"), *self.root.rglob(files.TO_GO_ON)):
                    files.remove(begun)
            files.forget(self.root / path)
            self.say(f"{description}: {seconds:.1f} s ({path})")
            return self._manifest.stages

        self._stages = self._main_says(commit)

    def _put(self, path: str, data: bytes) -> list[str]:
        files.write(self.root / path, data)
        return [""]

    def _drop_units(self, folder: str) -> dict[str, Row]:
        """Forgets the parts of a stage that is now finished as a whole."""
        if parts := [path for path in self._manifest.stages if path.startswith(f"{folder}/")]:
            self._manifest.forget(parts)
        if (self.root / folder).exists():
            files.remove(self.root / folder)
        return self._manifest.stages

    def _take_up(
        self,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Path],
        may_change: Collection[str],
        origin: branch.Origin | None,
    ) -> dict[str, Row]:
        """Makes the directory this run's own, and reads what is finished in it."""
        identity.refuse_strangers(self.root)  # before it gets a lock
        files.make_directory(self.root)
        self._lock = lock.take(self.root)
        try:
            known = None if origin is None else origin.describe(self.root)
            for line in identity.take_up(self.root, settings, inputs, may_change, known):
                self.say(line)
            for line in branch.take_over(self.root):
                self.say(line)
            self._manifest = Manifest(self.root)
        except BaseException:
            self.close()
            raise
        return self._manifest.stages

    def _main_says(self, work: Callable[[], T]) -> T:
        return main_says(self.group, work)

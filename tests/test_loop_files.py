"""Files are there whole or not at all, whatever fails and whenever."""

import errno
import os
from itertools import count
from pathlib import Path

import pytest
from faults.shim import fail, from_operation, watched
from hypothesis import given
from hypothesis import strategies as st

from dpo.checkpoint import FILES
from dpo.telemetry import FOLDER
from llama.files import require_place
from loop import files


class Killed(BaseException):
    """Stands for kill -9: no handler of ours may catch it."""


class At:
    """Raises `error` at the n-th operation; counts them."""

    def __init__(self, n, error):
        self.n, self.error, self.seen = n, error, 0

    def __call__(self, operation, path):
        if self.seen == self.n:
            self.seen += 1
            raise self.error
        self.seen += 1


def operations(hook, work):
    """How many operations `work` takes."""
    counter = At(None, None)
    hook(counter)
    work()
    hook(lambda operation, path: None)
    return counter.seen


def test_a_write_that_fails_anywhere_leaves_the_old_file_and_names_it(tmp_path, hook):
    path = tmp_path / "a" / "rows.jsonl"
    files.write(path, b"old")
    count = operations(hook, lambda: files.write(path, b"old"))
    assert count == 4  # write, fsync, replace, fsync of the directory
    for n in range(count):
        hook(At(n, OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match="rows.jsonl"):
            files.write(path, b"new")
        assert path.read_bytes() == (b"old" if n < 3 else b"new")
        assert os.listdir(path.parent) == ["rows.jsonl"]  # nothing lies about
        hook(lambda operation, path: None)
        files.write(path, b"old")


def test_a_write_that_is_killed_anywhere_leaves_the_old_or_the_new_file(tmp_path, hook):
    path = tmp_path / "rows.jsonl"
    for n in range(4):
        files.write(path, b"old")
        hook(At(n, Killed()))
        with pytest.raises(Killed):
            files.write(path, b"new")
        assert path.read_bytes() in (b"old", b"new")
        hook(lambda operation, path: None)
        files.write(path, b"new")  # and the rest of the killed write is in nobody's way
        assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_where_nothing_can_be_written_is_known_beforehand(tmp_path):
    (tmp_path / "file").touch()
    for path, complaint in (
        (tmp_path, "is a directory: name a file in it"),
        (tmp_path / "file" / "x", r"x: nothing can be written in .*file \(Not a directory\)"),
    ):
        with pytest.raises(ValueError, match=complaint):
            require_place(path)
    for path in (tmp_path / "file", tmp_path / "new", tmp_path / "new" / "folder" / "x"):
        require_place(path)
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_stays_and_what_it_points_at_is_written(tmp_path):
    link, target = tmp_path / "link", tmp_path / "folder" / "rows.jsonl"
    link.symlink_to(target)
    require_place(link)
    for data in (b"new", b"newer"):  # at first it points at nothing
        files.write(link, data)
        assert link.is_symlink() and target.read_bytes() == data
    assert os.listdir(target.parent) == ["rows.jsonl"]
    link.unlink()
    link.symlink_to(target / "x")
    with pytest.raises(ValueError, match="link: nothing can be written in .*rows.jsonl"):
        require_place(link)


def test_a_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        for work in (require_place, lambda path: files.write(path, b"rows")):
            with pytest.raises(ValueError, match=f"{path} is a device or a pipe, not a file"):
                work(path)
    assert pipe.is_fifo() and sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_what_is_read_is_not_written_over(tmp_path):
    source, other = tmp_path / "in", tmp_path / "other"
    source.touch()
    other.touch()
    (tmp_path / "link").symlink_to(source)
    for path in (source, tmp_path / ".." / tmp_path.name / "in", tmp_path / "link"):
        with pytest.raises(ValueError, match="is the file that is read: choose another --out"):
            require_place(path, source)
    for path in (other, tmp_path / "new"):
        require_place(path, source)
    require_place(tmp_path / "new", tmp_path / "new")  # who reads it says that it is missing


def test_bytes_reach_the_disk_before_their_name_and_the_name_before_the_end(tmp_path, hook):
    trace = []
    hook(lambda operation, path: trace.append((operation, path.name)))
    files.write(tmp_path / "x", b"1")
    assert trace == [("write", "x"), ("fsync", "x"), ("replace", "x"), ("fsync", tmp_path.name)]


def fill(directory: Path, names: dict[str, bytes]) -> Path:
    for name, data in names.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in files.names_in(directory)}


def test_a_directory_moves_in_with_every_file_synced(tmp_path, hook):
    source = fill(tmp_path / "s", {"a": b"1", "sub/b": b"2"})
    synced = []
    hook(lambda operation, path: synced.append(path) if operation == "fsync" else None)
    assert files.move_in(source, tmp_path / "t") == ["a", "sub/b"]
    assert contents(tmp_path / "t") == {"a": b"1", "sub/b": b"2"} and not source.exists()
    assert {source / "a", source / "sub/b", source / "sub", source, tmp_path} <= set(synced)


def test_a_directory_that_stands_already_keeps_what_others_wrote(tmp_path):
    target = fill(tmp_path / "t", {"a": b"old", "pairs.jsonl": b"kept"})
    files.move_in(fill(tmp_path / "s", {"a": b"new", "sub/b": b"2"}), target)
    assert contents(target) == {"a": b"new", "sub/b": b"2", "pairs.jsonl": b"kept"}
    assert not (tmp_path / "s").exists()


def test_what_is_aside_moves_too_and_is_no_part_of_the_result(tmp_path):
    names = {"a": b"1", "telemetry/b": b"2", "telemetry/c/d": b"3", "telemetry.txt": b"4"}
    source, target = fill(tmp_path / "s", names), tmp_path / "t"
    assert files.ASIDE == FOLDER  # `dpo` does not import `loop`
    assert files.move_in(source, target) == ["a", "telemetry.txt"]
    assert contents(target) == names
    assert files.move_in(fill(tmp_path / "s", names), target) == ["a", "telemetry.txt"]


def test_what_it_was_gone_on_from_moves_too_and_comes_back_until_it_is_forgotten(tmp_path):
    frozen = dict.fromkeys(FILES, b"f")  # `dpo` does not import `loop`
    source, target = fill(tmp_path / "s", {"a": b"1"} | frozen), tmp_path / "t"
    assert files.move_in(source, target) == ["a"]
    files.begin(source, target)  # nothing recorded it
    assert contents(source) == {"a": b"1"} | frozen and not target.exists()
    assert files.move_in(source, target) == ["a"]
    files.forget(target)
    files.begin(source, target)
    assert contents(source) == {} and contents(target) == {"a": b"1"}


def test_nothing_goes_on_from_what_is_half_moved(tmp_path, monkeypatch):
    """Where the target stands already, the files go one by one."""
    target = fill(tmp_path / "t", {"a": b"old", "b": b"old"})
    source = fill(tmp_path / "s", {"a": b"1", "b": b"2", FILES[0]: b"f"})

    def die(operation, path):
        if (operation, path.name) == ("replace", "b"):
            raise Killed

    monkeypatch.setattr(files, "before", die)
    with pytest.raises(Killed):
        files.move_in(source, target)
    assert contents(source) == {"b": b"2"} and contents(target) == {"a": b"1", "b": b"old"}


def test_remove_takes_files_directories_and_nothing(tmp_path):
    fill(tmp_path, {"a": b"", "d/b": b""})
    for name in ("a", "d", "never-there"):
        files.remove(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_digests_tell_what_is_gone(tmp_path):
    fill(tmp_path, {"a": b"abc"})
    found = files.digests(tmp_path, ["a", "b"])
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert found == {"a": {"size": 3, "sha256": known}, "b": None}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


@given(st.lists(st.dictionaries(st.sampled_from(["id", "text", "é"]), plain)))
def test_rows_come_back_as_they_were(rows):
    data = files.jsonl_bytes(rows)
    assert files.read_jsonl(data) == rows
    assert data.count(b"\n") == len(rows) and (not rows or data.endswith(b"\n"))


def test_rows_keep_odd_line_ends_and_their_order_of_fields():
    rows = [{"b": "one\u2028two\x85three\r\n", "a": "¼"}]
    data = files.jsonl_bytes(rows)
    assert data == '{"b": "one\u2028two\x85three\\r\\n", "a": "¼"}\n'.encode()
    assert files.read_jsonl(data) == rows


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_say_is_refused(number):
    with pytest.raises(ValueError, match="JSON"):
        files.jsonl_bytes([{"score": number}])
    with pytest.raises(ValueError, match="JSON"):
        files.json_bytes({"score": number})


def test_a_name_that_is_not_utf8_is_named():
    """JSON is UTF-8; elsewhere such a name, which Linux allows, does no harm."""
    name = os.fsdecode(b"/models/llama-\xff")
    with pytest.raises(ValueError, match=r'"path": "/models/llama-\\udcff" is not UTF-8: rename'):
        files.json_bytes({"note": "\u2028", "path": name})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("what", ["write", "move_in", "share", "remove"])
def test_every_failure_of_the_disk_says_what_it_met(tmp_path, what, number):
    for n in count():
        root = tmp_path / str(n)
        source = fill(root / "s", {"a": b"new", "sub/b": b"2"})
        works = {
            "write": lambda root=root: files.write(root / "in" / "rows.jsonl", b"rows"),
            "move_in": lambda root=root, source=source: files.move_in(source, root / "t"),
            "share": lambda root=root, source=source: files.share(source / "a", root / "c"),
            "remove": lambda source=source: files.remove(source),
        }
        with watched(root, from_operation(n, fail(number))):
            try:
                works[what]()
            except OSError as error:
                assert error.errno == number and str(error.filename).startswith(str(root)), n
            else:
                break  # beyond the last operation
    assert n >= (0 if (what, number) == ("remove", errno.ENOSPC) else 1)  # a full disk lets go

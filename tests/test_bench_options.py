"""The benches' command lines: what is wrong is said in a line, before anything is measured."""

import os

import pytest

from bench import __main__ as bench_main
from bench import gpu, loading, memory, rouge, training_memory
from bench.__main__ import main


@pytest.mark.parametrize("one", [bench_main, loading, memory, training_memory])
def test_what_is_measured_on_the_cpu_sees_no_gpu(one, monkeypatch) -> None:
    """TRL would train on it, and ours, next to it, in one process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(SystemExit):
        one.main(["--no-such-option"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


IMPOSSIBLE = [
    (bench_main, "--threads 0", "'0' is no whole number from 1 on"),
    (loading, "--ranks 0", "'0' is no whole number from 1 on"),
    (loading, "--ranks two", "'two' is no whole number from 1 on"),
    (loading, "--room FILE", "FILE' is no directory"),
    (rouge, "--kept 0", "'0' is no whole number from 1 on"),
    (rouge, "--threshold 0", "'0' is no number above 0, up to 1"),
    (rouge, "--threshold 1.5", "'1.5' is no number above 0, up to 1"),
    (rouge, "--threshold nan", "'nan' is no number above 0, up to 1"),
    (rouge, "--threshold high", "'high' is no number above 0, up to 1"),
    *((one, "--out FILE/x.md", "FILE/x.md: nothing can be written in") for one in
      (gpu, loading, memory, training_memory)),
]  # fmt: skip


@pytest.mark.parametrize(("one", "words", "complaint"), IMPOSSIBLE)
def test_an_impossible_value_is_said_before_anything_is_measured(
    one, words, complaint, tmp_path, capsys
) -> None:
    file = tmp_path / "FILE"
    file.touch()
    with pytest.raises(SystemExit) as stopped:
        one.main(words.replace("FILE", str(file)).split())
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {words.split()[0]}: " in said
    assert complaint.replace("FILE", str(file)) in said


def test_a_file_that_cannot_be_written_is_said_in_a_line(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("bench.__main__.races", None)  # it is said before the first race
    (tmp_path / "file").touch()
    for out, complaint in (
        (tmp_path / "file" / "B.md", "B.md: nothing can be written in"),
        (tmp_path, f"{tmp_path} is a directory: name a file in it"),
    ):
        assert main(["--quick", "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and complaint in line


def test_a_disk_that_fills_meanwhile_is_said_in_a_line(tmp_path, capsys, monkeypatch) -> None:
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("bench.__main__.races", lambda program: iter(()))
    monkeypatch.setattr("bench.__main__.write", full)
    assert main(["--quick", "--out", str(tmp_path / "B.md")]) == 2
    assert "B.md could not be written: [Errno 28]" in capsys.readouterr().err

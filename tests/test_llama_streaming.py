"""Several ranks and one directory: each reads the bytes of its own slices and no others, and what
they save together is what one of them saves alone.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import run_ranks
from tiny_llama import GROUPED, tiny_model, tiny_tokenizer

import llama
from llama import files, huggingface
from llama.meta import write_meta
from llama.parallel import start
from llama.weights import held, read_checkpoint

WIDE = replace(GROUPED, dim=96, ffn_dim=512, vocab_size=2000)  # 2 MB: far more than what is around
SMALL_FILES = 300_000

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/io").exists(), reason="the kernel does not count what a process reads"
)


def bytes_read() -> int:
    """By this process, by any system call, so far."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


def read_and_save(directory: str) -> None:
    """Reads `whole`, saves to `together`; tells how many bytes it read and which files it wrote."""
    group = start(timeout_s=60)
    llama.load_sharded(Path(directory) / "small", group)  # imports what there is to import
    before = bytes_read()
    model, tokenizer = llama.load_sharded(Path(directory) / "whole", group)
    read = bytes_read() - before
    held = sum(weight.to_local().numel() * 4 for weight in model.parameters())
    huggingface.FILE_BYTES = SMALL_FILES
    wrote: list[str] = []
    files.before = lambda operation, path: wrote.append(path.name)
    llama.save(model, tokenizer, Path(directory) / "together")
    weight_files = sorted({name for name in wrote if name.endswith(".safetensors")})
    found = {"read": read, "held": held, "wrote": weight_files}
    found["failure"] = save_where_rank_1_has_no_room(model, tokenizer, Path(directory) / "full")
    (Path(directory) / f"{group.rank}.json").write_text(json.dumps(found))
    group.stop()


def save_where_rank_1_has_no_room(model, tokenizer, directory: Path) -> str:
    """What `save` says there, on any rank."""

    def full(operation: str, path: Path) -> None:
        if os.environ["RANK"] == "1":
            raise OSError(f"no room to {operation} {path.name}")

    files.before = full
    try:
        llama.save(model, tokenizer, directory)
    except OSError as error:
        return str(error)
    return ""


def test_two_ranks_read_their_own_bytes_and_save_together(tmp_path, monkeypatch) -> None:
    llama.save(tiny_model(), tiny_tokenizer(), tmp_path / "small")
    llama.save(tiny_model(WIDE), tiny_tokenizer(), tmp_path / "whole")
    assert run_ranks(read_and_save, 2, str(tmp_path)) == [0, 0]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    around = sum(
        file.stat().st_size
        for file in (tmp_path / "whole").iterdir()
        if file.suffix != ".safetensors"
    )
    for rank in ranks:
        assert rank["held"] <= rank["read"] < rank["held"] + around + 20_000
        assert rank["held"] < 0.52 * WIDE.parameter_count * 4
        assert "no room to write model-00002-of" in rank["failure"]
    assert not (tmp_path / "full" / "config.json").exists()

    monkeypatch.setattr(huggingface, "FILE_BYTES", SMALL_FILES)
    llama.save(tiny_model(WIDE), tiny_tokenizer(), tmp_path / "alone")
    names = {file.name for file in (tmp_path / "alone").iterdir()}
    weight_files = sorted(name for name in names if name.endswith(".safetensors"))
    assert [rank["wrote"] for rank in ranks] == [weight_files[::2], weight_files[1::2]]
    assert len(names) > 12 and names == {file.name for file in (tmp_path / "together").iterdir()}
    for name in names:
        alone, together = ((tmp_path / run / name).read_bytes() for run in ("alone", "together"))
        assert alone == together, name


def test_the_count_sees_a_rank_that_reads_all(tmp_path) -> None:
    """The control: one process reads every byte, once."""
    llama.save(tiny_model(WIDE), tiny_tokenizer(), tmp_path)
    llama.load(tmp_path)  # imports what there is to import
    before = bytes_read()
    model, _ = llama.load(tmp_path)
    size = sum(weight.nbytes for weight in model.state_dict().values())
    assert size <= bytes_read() - before < size + 200_000


def resident(file: Path) -> int:
    """Bytes of a mapped file that this process has looked at."""
    parts = Path("/proc/self/smaps").read_text().split(str(file))[1:]
    return sum(1024 * int(part.split("Rss:")[1].split()[0]) for part in parts)


def test_of_metas_parts_only_the_wanted_rows_are_looked_at(tmp_path) -> None:
    """A quarter of the rows are a quarter of the part, or half of it where it is cut by rows and
    holds but half of them; a control then reads all. (Large matrices: the kernel looks around.)
    """
    config = replace(GROUPED, dim=256, n_layers=1, n_heads=4, n_kv_heads=4, ffn_dim=32768)
    write_meta(tmp_path, held(tiny_model(config).state_dict()), config, tiny_tokenizer(), parts=2)
    weights, first = read_checkpoint(tmp_path).weights, tmp_path / "consolidated.00.pth"
    for cut, least, most in ((4, 0.35, 0.6), (1, 0.9, 1.1)):
        for name, tensor in weights.like.items():
            rows = len(tensor) // cut
            assert weights.read(name, (slice(0, rows),), None).shape[0] == rows
        assert least < resident(first) / first.stat().st_size < most

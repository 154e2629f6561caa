"""The kernels of a decoding step: on a GPU, and by Triton's interpreter where there is Triton."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from llama.varlen import Spans, attend, has_kernels

HEADS = [(4, 4), (8, 2), (8, 1)]  # of queries, of keys and values
SEQUENCES = {  # queries and keys of each
    "several samples a prompt": ([3, 1, 0, 2], [70, 5, 9, 0]),
    "a query each": ([1, 1, 1, 1], [1, 64, 65, 200]),
    "more queries than go at once": ([40, 1, 2, 130], [30, 1, 2, 128]),
}


def case(heads: tuple[int, int], which: str) -> tuple[Tensor, Tensor, Tensor, Spans]:
    """Queries, keys, values and who sees which; where no keys are, memory holds NaN."""
    queries, counts = SEQUENCES[which]
    draw = torch.Generator().manual_seed(sum(queries))
    q_NHD = torch.randn(sum(queries), heads[0], 32, generator=draw)
    k_LGD, v_LGD = torch.full((2, 1100, heads[1], 32), torch.nan)
    starts = [700, 450, 200, 0]
    for start, count in zip(starts, counts):
        for x_LGD in (k_LGD, v_LGD):
            x_LGD[start : start + count].normal_(generator=draw)
    numbers = [torch.tensor([0, *queries]).cumsum(0), torch.tensor([*starts, 0])]
    numbers.append(torch.tensor(counts))
    return q_NHD, k_LGD, v_LGD, Spans(*(x.int() for x in numbers), max(queries), max(counts))


def check_attention(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Ours against plain products in fp32 of the same numbers."""
    from llama.decoding import attend_few

    for heads in HEADS:
        for which in SEQUENCES:
            q_NHD, k_LGD, v_LGD, spans = case(heads, which)
            q_NHD, k_LGD, v_LGD = (x.to(dtype) for x in (q_NHD, k_LGD, v_LGD))
            out_NHD, lse_NH = attend(q_NHD.float(), k_LGD.float(), v_LGD.float(), spans)
            there = Spans(
                *(x.to(device) for x in (spans.query_I1, spans.start_I1, spans.count_I)),
                spans.most_queries,
                spans.most_keys,
            )
            found = attend_few(*(x.to(device) for x in (q_NHD, k_LGD, v_LGD)), there)
            where = f"{heads}, {which}"
            assert (found[0].cpu().float() - out_NHD).abs().max() < tolerance, where
            torch.testing.assert_close(found[1].cpu(), lse_NH, rtol=0, atol=tolerance)


def check_keeping(device: str, dtype: torch.dtype) -> None:
    """Rows that lie in one product with others, into places in no order."""
    from llama.decoding import keep

    for G, D in ((4, 32), (3, 16)):
        arena = torch.zeros(2, 50, G, D, dtype=dtype, device=device)
        product = torch.randn(7, 3 * G * D).to(dtype).to(device)
        k_BGD, v_BGD = (x.unflatten(1, (G, D)) for x in product.split(G * D, dim=1)[1:])
        place_B = torch.tensor([4, 9, 2, 30, 49, 0, 11], device=device)
        keep(*arena, place_B, k_BGD, v_BGD)
        for kept_AGD, new_BGD in zip(arena, (k_BGD, v_BGD)):
            expected_AGD = torch.zeros_like(kept_AGD)
            expected_AGD[place_B] = new_BGD
            assert torch.equal(kept_AGD, expected_AGD)


@pytest.mark.gpu
def test_on_a_gpu_they_give_what_plain_products_give() -> None:
    check_attention("cuda", torch.bfloat16, 2e-2)
    check_keeping("cuda", torch.bfloat16)


def test_interpreted_they_give_what_plain_products_give() -> None:
    pytest.importorskip("triton")
    words = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(
        words, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_they_are_not_for_other_devices_types_and_widths() -> None:
    assert not has_kernels(torch.zeros(1, 1, 32, dtype=torch.bfloat16))

    class OnGpu:
        is_cuda, dtype, shape = True, torch.float32, (1, 1, 32)

    assert not has_kernels(OnGpu())  # type: ignore[arg-type]
    OnGpu.dtype, OnGpu.shape = torch.bfloat16, (1, 1, 24)
    assert not has_kernels(OnGpu())  # type: ignore[arg-type]


if __name__ == "__main__":
    check_attention("cpu", torch.float32, 1e-5)
    check_keeping("cpu", torch.float32)

"""Races against other people's tools, side by side in one run: the only code here that is timed.

A face, like train.py: it drives the packages and is imported by nothing but its test.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched: weights and rows are made here


def hide_gpus() -> None:
    """For what is measured on the CPU: from now on this process and those it starts see no GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

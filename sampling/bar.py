"""The line in the terminal that tells how far sampling is. Knows no model."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from sampling.spread import Progress


@contextmanager
def progress_bar(
    samples: int, description: str, *, shown: bool = True
) -> Iterator[Callable[[Progress], None]]:
    """What `generate` is to call: shows samples that are ready, time left, tokens a second since
    the beginning, and how many samples are in progress.
    """
    start = time.perf_counter()
    with tqdm(total=samples, desc=description, unit="sample", disable=not shown) as bar:

        def tell(progress: Progress) -> None:
            rate = progress.tokens / (time.perf_counter() - start)
            running = f"{rate:,.0f} tokens/s, {progress.running} in progress"
            bar.set_postfix_str(running, refresh=False)
            bar.update(progress.ready - bar.n)

        yield tell

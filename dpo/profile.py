"""Where a step's time goes: a table by clocks, and then a trace by torch's profiler.

```
  steps    0 1      2 3 4                       5                   6 7 8          then
           warm up  clocked → profile.txt       the profiler warms  traced → .gz   nothing
```
They are different steps because the profiler slows what it sees. A clocked phase waits for the
device before it is read, so device and processor do not overlap in these steps. Knows no model and
no loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function

from llama.files import replace_file, replacing
from llama.parallel import Group

PHASES = ("data", "forward", "backward", "optimizer", "communication", "other")
TABLE, TRACE = "profile.txt", "profile.trace.json.gz"
COLLECTIVES = "ncclDevKernel"  # how NVIDIA's kernels that talk to other cards begin


class Unprofiled:
    """No profile is wanted: nothing happens."""

    def step(self) -> AbstractContextManager[None]:
        """Surrounds a step."""
        return nullcontext()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Surrounds a part of a step, one of PHASES; in another phase, it is not part of that."""
        return nullcontext()

    def count(self, tokens: float, operations: float) -> None:
        """Takes note of what a step did, on all ranks."""

    def heard(self, group: Group) -> Group:
        """The group, its sums a phase of their own."""
        return group

    def close(self) -> None:
        """Ends it, however far it is."""


class Profile(Unprofiled):
    """Clocks and traces a few of the steps, and writes files into `directory`.

    title: what is trained, on what; steps: those that are left; peak: operations a second that all
    cards together can do, or None.
    """

    def __init__(
        self, directory: Path, device: torch.device, title: str, steps: range, peak: float | None
    ) -> None:
        self.directory, self.device, self.title, self.peak = directory, device, title, peak
        ends = [steps.start + end for end in accumulate(plan(len(steps)))]
        self.now, self.clocked = steps.start, range(ends[0], ends[1])
        self.warming, self.traced = range(ends[1], ends[2]), range(ends[2], ends[3])
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.tokens = self.operations = 0.0
        self.collectives: float | None = None  # seconds on the device, in all traced steps
        self._kept = False
        self._profiler: torch.profiler.profile | None = None
        self._running, self._since = "", 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Surrounds a step."""
        if self.now in self.warming:
            self._start()
        with self._clock("other") if self.now in self.clocked else nullcontext():
            yield
        self.now += 1
        if self._profiler is not None:
            self._profiler.step()
        if self.now == self.clocked.stop:
            self._write_table()
        if self.traced and self.now == self.traced.stop:
            self.close()
            self._write_table()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Surrounds a part of a step, one of PHASES; in another phase, it is not part of that."""
        if self.now in self.clocked:
            return self._clock(name)
        return record_function(name) if self.now in self.traced else nullcontext()

    def count(self, tokens: float, operations: float) -> None:
        """Takes note of what a step did, on all ranks."""
        if self.now in self.clocked:
            self.tokens += tokens
            self.operations += operations

    def heard(self, group: Group) -> Group:
        """The group, its sums a phase of their own."""
        return Heard(**vars(group), clock=self.phase)

    def close(self) -> None:
        """Ends it, however far it is."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        before = self._running
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str) -> None:
        """What ran until now gets its time, and `name` runs from now on."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running] += now - self._since
        self._running, self._since = name, now

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=1, active=len(self.traced), repeat=1),
            on_trace_ready=self._keep,
            acc_events=True,  # there is one cycle; without it torch 2.11 warns of the next
        )
        self._profiler.start()

    def _keep(self, profiler: torch.profiler.profile) -> None:
        """Writes the trace, if it is whole, and adds up what it alone knows."""
        if self.now < self.traced.stop:
            return
        with replacing(self.directory / TRACE) as draft:
            whole = draft.with_name(f"{draft.name}.gz")  # by the name it is known what to write
            profiler.export_chrome_trace(str(whole))
            whole.replace(draft)
        self._kept = True
        if self.device.type == "cuda":  # on a processor this takes long, and there are none
            kernels = (e for e in profiler.key_averages() if e.key.startswith(COLLECTIVES))
            self.collectives = sum(kernel.self_device_time_total for kernel in kernels) / 1e6

    def _write_table(self) -> None:
        replace_file(self.directory / TABLE, self.table().encode())

    def table(self) -> str:
        """Seconds a step by phase, and what follows from them."""
        steps, whole = len(self.clocked), sum(self.seconds.values())
        rows = [("a step of", "seconds", "share")]
        for name, seconds in [*self.seconds.items(), ("all", whole)]:
            rows.append((name, f"{seconds / steps:.6f}", f"{seconds / whole:.1%}"))
        lines = [self.title, f"clocked: {_named(self.clocked)}", ""]
        lines += [f"{name:<14}{seconds:>12}{share:>9}" for name, seconds, share in rows]
        lines += ["", f"tokens/s      {self.tokens / whole:12,.0f}"]
        if self.peak is None:
            lines.append("MFU           unknown: dpo/speed.py has no peak for this device")
        else:
            mfu = self.operations / (whole * self.peak)
            lines.append(f"MFU           {mfu:12.1%} of {self.peak / 1e12:,.0f} TFLOP/s")
        if self._kept:
            lines.append(f"{TRACE}: {_named(self.traced)}")
        if self.collectives is not None:
            lines.append(
                f"collectives: {self.collectives / len(self.traced):.6f} seconds a step on the "
                "device, within forward and backward"
            )
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Heard(Group):
    """A group whose sums are a phase."""

    clock: Callable[[str], AbstractContextManager[None]] = field(default=Unprofiled().phase)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks."""
        with self.clock("communication"):
            return super().sum(values)


def plan(left: int) -> tuple[int, int, int, int]:
    """Of so many steps, how many are there to warm up, are clocked, warm the profiler, are traced;
    with nine or more 2, 3, 1, 3."""
    traced = min(3, max(0, left - 2) // 2)
    first = min(1, traced)
    warm = min(2, (left - traced - first) // 2)
    return warm, min(3, left - traced - first - warm), first, traced


def _named(steps: range) -> str:
    return f"steps {steps.start} to {steps.stop - 1}" if len(steps) > 1 else f"step {steps.start}"

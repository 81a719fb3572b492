"""Verify and time candidates on this GPU, in a process of its own.

A job is a line of JSON in, its answer a line of JSON out (`process.Worker`). Whoever asks replaces
the process when it hangs, dies, or answers that it is `broken`: after a fault the CUDA context of
a process is of no use any more.

A job holds `do`, `file` (a generated file), `config` (by kernel, which it is run with; if empty,
by those of the file), `direction` and `workloads` ([batch, length] each), and

- `verify`: `seed`, and `short`, [batch, length]. At this size and at every workload: output and
  every gradient against float64, by both tolerances, with poisoned memory. At `short` also: the
  same bits in a second run, and nothing written beyond tensors. Of decoding: the property
  `decode` after a prompt of `short`, and without one in the rows of the largest workload. The
  answer holds `checks`.
- `time`: `warmup_ms`, `repeat_ms`. The answer holds `us`: [low, median, high] a workload.
- `bounds`: `us`, of elementwise kernels that move what the direction must; of decoding, of copies.
- `machine`: `gpu`, its name, `uuid`, that of no other GPU, and `versions`, as of
  `measure.machine`.

An answer holds `status`, a word of `records.Status`; if that is not `ok`, `detail`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sh2gen.base.process import serve
from sh2gen.runtime.measure import (
    arguments,
    bound,
    calls,
    documents_of,
    io_dtype,
    machine,
    out_of_memory,
    time_call,
)
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.runtime.steps import step_bound, steps, time_steps
from sh2gen.schedule.space import DECODE
from sh2gen.spec.language import Sequences
from sh2gen.verify.fences import written_beyond
from sh2gen.verify.report import Report
from sh2gen.verify.verify import verify

# Elements that are compared with float64, in whole groups over all of time, or in parts of time of
# groups that are larger; all are looked at for NaN. More would take longer than the kernels that
# are tried.
COMPARED = 1 << 22
_AFTER_NOTHING = 7  # steps that are decoded of many rows
GUARD = 1 << 16  # elements of NaN on each side of an activation; keeps its alignment


class Bench:
    """What jobs share: the imported files, by path.

    Args:
        device: "cuda"; "cpu" verifies plain PyTorch, which tests do.
    """

    def __init__(self, device: str = "cuda") -> None:
        self._device = device
        self._operators: dict[str, Operator] = {}

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to one job, whatever happens."""
        try:
            return {"status": "ok", **getattr(self, "_" + job["do"])(job)}
        except Exception as error:
            return failed(error)

    def _operator(self, job: dict[str, Any]) -> Operator:
        path = job["file"]
        if path not in self._operators:
            self._operators[path] = Operator(Path(path))
        operator = self._operators[path]
        if job["config"]:
            operator.use(job["config"])
        return operator

    def _machine(self, job: dict[str, Any]) -> dict[str, Any]:
        here = torch.cuda.get_device_properties(torch.cuda.current_device())
        return machine() | {"uuid": str(here.uuid)}

    def _verify(self, job: dict[str, Any]) -> dict[str, Any]:
        operator = self._operator(job)
        spec = operator.spec
        short = tuple(job["short"])
        if job["direction"] == DECODE:
            return self._decodes(operator, short, job)
        shapes = dict.fromkeys((short, *map(tuple, job["workloads"])))
        # First, because between fences such a write breaks nothing; elsewhere it may be a fault.
        if beyond := self._beyond(operator, *short):
            return {"status": "wrong", "detail": f"wrote {beyond} bytes beyond tensors"}
        report = verify(
            spec,
            Training(operator, self._device),
            dtype=io_dtype(spec),
            shapes=list(shapes),
            device=self._device,
            seed=job["seed"],
            properties=("equality", "determinism"),
            property_shapes=[short],
            compared=COMPARED,
        )
        if spec.sequences is Sequences.PACKED and report.ok:
            more = verify(
                spec,
                OperatorRunner(operator, "cuda" if self._device == "cuda" else "eager"),
                dtype=io_dtype(spec),
                shapes=[],
                device=self._device,
                seed=job["seed"],
                properties=("documents",),
                property_shapes=[short],
                compared=COMPARED,
            )
            report = replace(report, checks=(*report.checks, *more.checks))
        return _verdict(report, 1)

    def _decodes(
        self, operator: Operator, prompt: tuple[int, int], job: dict[str, Any]
    ) -> dict[str, Any]:
        rows = max(batch for batch, _ in job["workloads"])
        report = verify(
            operator.spec,
            OperatorRunner(operator, "cuda" if self._device == "cuda" else "eager"),
            dtype=io_dtype(operator.spec),
            shapes=[],
            device=self._device,
            seed=job["seed"],
            properties=("decode",),
            property_shapes=[prompt, (rows, _AFTER_NOTHING)],
        )
        return _verdict(report)

    def _beyond(self, operator: Operator, batch: int, length: int) -> int:
        """Bytes beyond tensors that forward and backward write to: as `measure.calls` times them,
        but launched directly.
        """
        dtype = io_dtype(operator.spec)
        if operator.spec.sequences is Sequences.PACKED:
            batch, length = 1, batch * length
        inputs, parameters, dy = arguments(operator, batch, length, dtype, self._device)
        namespace = operator.namespace

        def run() -> None:
            before: dict[str, Any] = {}
            after: dict[str, Any] = {}
            if operator.spec.sequences is Sequences.PACKED:
                before = {"state": documents_of(operator, inputs[0])[0]}
            if operator.spec.state is not None:
                begun = namespace.zero_state_like(inputs[0])
                past = namespace.past_for_kernels(begun, inputs[0])
                before = {"state": past} if past else {}
            _, *saved = namespace.launch_forward(inputs, parameters, **before)
            if hasattr(namespace, "stateful_op"):
                after = {"d_leaving": torch.zeros_like(saved.pop())}
            namespace.launch_backward(dy, inputs, parameters, saved, **before, **after)

        launches = self._device == "cuda" and hasattr(namespace, "launch_forward")
        return written_beyond(run) if launches else 0

    def _time(self, job: dict[str, Any]) -> dict[str, Any]:
        operator = self._operator(job)
        dtype = io_dtype(operator.spec)
        found = []
        for batch, length in job["workloads"]:
            if job["direction"] == DECODE:
                timing = time_steps(steps(operator, batch), job["warmup_ms"], job["repeat_ms"])
                found.append(astuple(timing))
                continue
            call = getattr(calls(operator, batch, length, dtype), job["direction"])
            found.append(astuple(time_call(call, job["warmup_ms"], job["repeat_ms"])))
        return {"us": found}

    def _bounds(self, job: dict[str, Any]) -> dict[str, Any]:
        spec = self._operator(job).spec
        dtype, direction = io_dtype(spec), job["direction"]
        found = [
            step_bound(spec, batch)
            if direction == DECODE
            else bound(spec, batch, length, dtype, direction)
            for batch, length in job["workloads"]
        ]
        return {"us": [astuple(timing) for timing in found]}


def _verdict(report: Report, others: int = 0) -> dict[str, Any]:
    """The answer that a report, and so many other checks that passed, come to."""
    if report.ok:
        return {"checks": len(report.checks) + others}
    first = report.failures[0]
    detail = f"{first.name}: {first.measured:.3g}, allowed {first.bound:.3g}"
    more = f"; {first.detail}" if first.detail else ""
    return {"status": "wrong", "detail": detail + more}


class Training(OperatorRunner):
    """Runs what is timed, on tensors that lie in memory as what is timed has them.

    Forward is that of training, which keeps what backward reads. Rows are padded to whole vectors,
    with NaN, and the whole lies between NaNs.
    """

    def forward(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        leaves = [self._laid_out(x).detach().requires_grad_() for x in inputs.values()]
        return self._output(*leaves, **parameters).detach()

    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        laid_out = {name: self._laid_out(x) for name, x in inputs.items()}
        return super().gradients(laid_out, parameters, self._laid_out(dy))

    def _laid_out(self, x: Tensor) -> Tensor:
        """x in the strides of the operator's own outputs."""
        namespace = self.operator.namespace
        like = namespace.allocate(x.new_empty(x.shape, device="meta"), x.shape[namespace.TIME])
        if like.stride() == x.stride():
            return x
        reach = sum((n - 1) * step for n, step in zip(x.shape, like.stride(), strict=True)) + 1
        memory = x.new_full((reach + 2 * GUARD,), math.nan)
        return memory.as_strided(x.shape, like.stride(), GUARD).copy_(x)


def failed(error: Exception) -> dict[str, Any]:
    """What an exception means, and whether the process can go on after it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = "runtime"
    if out_of_memory(error):
        status = "memory"
    elif "OutOfResources" in kinds:
        status = "resources"
    elif kinds & {"CompilationError", "PTXASError"}:
        status = "compile"
    answer: dict[str, Any] = {
        "status": status,
        "detail": f"{type(error).__name__}: {error}"[:2000],
    }
    error.__traceback__ = None  # its frames hold tensors
    try:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except Exception as broken:
        answer |= {"broken": True}
        if status == "memory":
            answer |= {"status": "runtime", "detail": f"{answer['detail']}\n{broken}"[:2000]}
    return answer


def main() -> None:
    """Answer jobs, as `process.serve` does."""
    serve(Bench().answer)

"""Verify and time candidates on this GPU, in a process of its own (layer 7).

A job is a line of JSON in, its answer a line of JSON out (`process.Worker`). Whoever asks replaces
the process when it hangs, dies, or answers that it is `broken`: after a fault the CUDA context of
a process is of no use any more.

A job holds `do`, `file` (a generated file), `settings` (what stands for its SCHEDULE, OPTIONS and
PROGRAMS), `direction` and `workloads` ([batch, length] each), and

- `verify`: `seed`. Output and every gradient against float64, poisoned memory, both gates, the
  same bits in a second run, and nothing written beyond tensors. The answer holds `checks`.
- `time`: `warmup_ms`, `repeat_ms`. The answer holds `us`: [low, median, high] a workload.
- `bounds`: `us`, of elementwise kernels that move what the direction must.
- `machine`: `gpu` and `versions`.

An answer holds `status`, a word of `records.Status`; if that is not `ok`, `detail`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sh2gen.fences import written_beyond
from sh2gen.measure import arguments, bound, calls, io_dtype, machine, out_of_memory, time_call
from sh2gen.operator import Operator, OperatorRunner
from sh2gen.process import serve
from sh2gen.verify import verify

# Elements that are compared with float64, in whole groups over all of time; all are looked at for
# NaN. More would take longer than the kernels that are tried.
COMPARED = 1 << 22
# A short case of several tiles, with two sequences. Vectors are whole, as in what is timed, so
# that the binary is the same: others are verified when the winner is compiled.
SHORT = (2, 1032)


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
        for name, values in job["settings"].items():
            setattr(operator.namespace, name, values)
        return operator

    def _machine(self, job: dict[str, Any]) -> dict[str, Any]:
        return machine()

    def _verify(self, job: dict[str, Any]) -> dict[str, Any]:
        operator = self._operator(job)
        spec = operator.spec
        batch, length = max(job["workloads"], key=lambda w: w[0] * w[1])
        report = verify(
            spec,
            Training(operator, self._device),
            dtype=io_dtype(spec),
            shapes=[SHORT, (batch, length)],
            device=self._device,
            seed=job["seed"],
            properties=("equality", "determinism"),
            property_shapes=[SHORT],
            compared=COMPARED,
        )
        if report.ok:
            if beyond := self._beyond(operator, *SHORT):
                return {"status": "wrong", "detail": f"wrote {beyond} bytes beyond tensors"}
            return {"checks": len(report.checks) + 1}
        first = report.failures[0]
        detail = f"{first.name}: {first.measured:.3g}, allowed {first.bound:.3g}"
        more = f"; {first.detail}" if first.detail else ""
        return {"status": "wrong", "detail": detail + more}

    def _beyond(self, operator: Operator, batch: int, length: int) -> int:
        """Bytes beyond tensors that forward and backward write to."""
        dtype = io_dtype(operator.spec)
        inputs, parameters, dy = arguments(operator, batch, length, dtype, self._device)
        namespace = operator.namespace
        if hasattr(namespace, "effective"):
            parameters = namespace.effective(*parameters)

        def run() -> None:
            _, *saved = namespace.launch_forward(inputs, parameters)
            namespace.launch_backward(dy, inputs, parameters, saved)

        return written_beyond(run) if self._device == "cuda" else 0

    def _time(self, job: dict[str, Any]) -> dict[str, Any]:
        operator = self._operator(job)
        dtype = io_dtype(operator.spec)
        found = []
        for batch, length in job["workloads"]:
            call = getattr(calls(operator, batch, length, dtype), job["direction"])
            found.append(astuple(time_call(call, job["warmup_ms"], job["repeat_ms"])))
        return {"us": found}

    def _bounds(self, job: dict[str, Any]) -> dict[str, Any]:
        spec = self._operator(job).spec
        dtype, direction = io_dtype(spec), job["direction"]
        found = [
            bound(spec, batch, length, dtype, direction) for batch, length in job["workloads"]
        ]
        return {"us": [astuple(timing) for timing in found]}


class Training(OperatorRunner):
    """Forward as training runs it, which is what is timed: it keeps what backward reads."""

    def forward(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        leaves = [x.detach().requires_grad_() for x in inputs.values()]
        return self._output(*leaves, **parameters).detach()


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

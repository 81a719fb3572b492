"""Decoding: GPU time of steps beside that of their bytes, and what the host does for one.

    PYTHONPATH=. python benchmarks/decode.py --json decode.json

Of shipped operators at their own width, bfloat16, past in bfloat16 and modes in float32. Kernels
are verified first, by the property `decode`. A time is that of a captured graph of steps on pools
larger than the cache, each step on other places; a median. The floor is a copy of as many bytes
as a step must read and write. Host times are as of benchmarks/host.py.

Beside them, where installed: the update kernel of flash-linear-attention, and the steps of
vortex, which are PyTorch's small ops. Each computes a few steps as sh2gen does first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sh2gen
from sh2gen.base.resources import folder
from sh2gen.bench.baselines.base import (
    given_taps,
    imported,
    log_poles_of,
    short_tensors,
    silu,
    taps_of,
    weight_of_z,
)
from sh2gen.runtime.measure import host_time, machine
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.runtime.steps import BEYOND_CACHE, inputs_of, pool_of, step_bound, time_steps
from sh2gen.spec.operator import OpSpec
from sh2gen.verify.verify import verify

OPS = ("short_conv", "hyena_se", "hyena_mr", "hyena_li")
BATCHES = (1, 64, 256)
PEER_CALLS = 400  # of which some have many launches
ROUNDS = 5
HOST_TARGET = 1.5  # of the forward of nn.Linear(256, 256)
# Microseconds on an H100 by batch.
TARGETS = {"hyena_se": (5, 8, 24), "hyena_mr": (6, 38, 145), "hyena_li": (6, 22, 80)}


Step = Callable[[list[Tensor], list[Tensor]], tuple[Tensor, list[Tensor]]]


def fla_step(spec: OpSpec, weights: dict[str, Tensor]) -> tuple[Step, list[tuple[int, ...]]]:
    """Inputs (B, D) and its state -> y (B, D) and the state; and the shapes of a row's state."""
    update = imported(["fla.modules.conv", "fla.modules.causal_conv1d"], "causal_conv1d_update")
    made = {n: x.to(torch.bfloat16) for n, x in short_tensors(spec, weights, 1).items()}

    def step(inputs: list[Tensor], state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, cache = update(
            inputs[0], state[0], weight=made["weight"], bias=made["bias"], activation=silu(spec)
        )
        return y, [cache]

    return step, [(spec.channels, taps_of(spec) or 0)]


def vortex_step(spec: OpSpec, weights: dict[str, Tensor]) -> tuple[Step, list[tuple[int, ...]]]:
    """As `fla_step`. The order of its groups and gates is ours."""
    engine = imported(["vortex.model.engine"], "HyenaInferenceEngine")
    taps, skip, wide = taps_of(spec), weight_of_z(spec, weights), 3 * spec.channels
    short = weights["featurizer"][:, None].to(torch.bfloat16)
    fir = partial(engine.step_fir, None)
    if taps is not None:
        rows = given_taps(spec, weights, taps).flip(1)[:, None]

        def long(z: Tensor, past: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
            y, past = fir(z, past, rows, skip, gated_bias=skip is not None)
            return q * y, past

        last: tuple[int, ...] = (spec.channels, taps - 1)
    else:
        residues, poles = weights["residues"], log_poles_of(weights)[..., None]
        last = (spec.channels, residues.shape[1])

    def step(inputs: list[Tensor], state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        features, tail = fir(torch.cat(inputs, 1), state[0], short)
        q, k, v = features.chunk(3, 1)
        if taps is not None:
            y, past = long(k * v, state[1], q)
        else:
            y, past = engine.step_iir(None, q, k, v, skip, residues, poles, state[1])
        return y.to(q.dtype), [tail, past]

    return step, [(wide, weights["featurizer"].shape[1] - 1), last]


PEERS = {"short_conv": fla_step, "hyena_se": vortex_step}
PEERS |= dict.fromkeys(("hyena_mr", "hyena_li"), vortex_step)


def peer(module: Any, operator: Operator, batch: int, least: int) -> list[Callable[[], Any]] | str:
    """Calls of a step by another package, or why there are none."""
    spec = operator.spec
    weights = {n: x.detach() for n, x in module.named_parameters()}
    try:
        step, shapes = PEERS[spec.op](spec, weights)
    except ImportError as error:
        return str(error)
    kinds = [torch.float32 if "residues" in weights and i else torch.bfloat16 for i in (0, 1)]

    def room() -> list[Tensor]:
        return [
            torch.zeros(batch, *shape, dtype=kind, device="cuda")
            for shape, kind in zip(shapes, kinds, strict=False)
        ]

    state, theirs = module.initial_state(batch, dtype=torch.bfloat16, device="cuda"), room()
    for _ in range(8):
        inputs = inputs_of(operator, batch)
        wanted = module.decode(*inputs, state).flatten(1).float()
        y, theirs = step([x.flatten(1) for x in inputs], theirs)
        if not (error := (y.float() - wanted).norm() / wanted.norm()) < 2e-2:
            return f"its results differ by {error:.3g}"
    rows = [x.flatten(1) for x in inputs_of(operator, batch)]
    each = sum(x.numel() * x.element_size() for x in theirs)
    states = [room() for _ in range(min(PEER_CALLS, max(2, -(-least // each))))]
    return [partial(step, rows, one) for one in states]


def checked(operator: Operator, device: str) -> int:
    """Checks of decoding that passed.

    Raises:
        CheckFailed: one did not.
    """
    runner = OperatorRunner(operator, "cuda" if device == "cuda" else "eager")
    report = verify(
        operator.spec,
        runner,
        dtype=torch.bfloat16,
        shapes=[(2, 40), (1, 300)],
        device=device,
        properties=["decode"],
    )
    report.require()
    return len(report.checks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the times")
    arguments = parser.parse_args()
    linear, x = nn.Linear(256, 256, device="cuda"), torch.randn(256, 256, device="cuda")
    found: dict[str, Any] = {"machine": machine(), "us": {}, "host_us": {}}
    with torch.no_grad():
        for op in OPS:
            operator = sh2gen.load(folder("generated") / f"{op}.py")
            module = operator.module(device="cuda")
            print(f"{op}: {checked(operator, 'cuda')} checks", flush=True)
            for i, batch in enumerate(BATCHES):
                state, slots = pool_of(operator, batch)
                inputs = inputs_of(operator, batch)
                calls = [partial(module.decode, *inputs, state, slots=one) for one in slots]
                us = time_steps(calls).median
                floor = step_bound(operator.spec, batch).median
                target = f", target on an H100 {TARGETS[op][i]}" if op in TARGETS else ""
                print(f"  batch {batch}: {us:.1f} us, floor {floor:.1f}{target}", flush=True)
                times = {"decode": us, "floor": floor}
                del state, calls
                torch.cuda.empty_cache()
                name = PEERS[op].__name__.removesuffix("_step")
                calls = peer(module, operator, batch, BEYOND_CACHE)
                if isinstance(calls, str):
                    print(f"    {name}: {calls}")
                else:
                    times[name] = time_steps(calls).median
                    print(f"    {name}: {times[name]:.1f} us", flush=True)
                found["us"][f"{op}/{batch}"] = times
                del calls
                torch.cuda.empty_cache()
            state, inputs = module.initial_state(1), inputs_of(operator, 1)
            both: list[list[float]] = [[], []]
            for _ in range(ROUNDS):
                both[0].append(host_time(partial(linear, x)))
                both[1].append(host_time(partial(module.decode, *inputs, state)))
            base, host = map(statistics.median, both)
            found["host_us"][op] = {"decode": host, "linear": base}
            print(f"  host {host:.0f} us, {host / base:.2f} of nn.Linear's (target {HOST_TARGET})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Results of `bench` that nobody measured, for tests of tables and figures."""

from __future__ import annotations

from sh2gen.bench.baselines import BASELINES
from sh2gen.bench.results import Effort, Outcome, Results, Size, Steps
from sh2gen.bench.worker import OWN
from sh2gen.runtime.measure import Timing

LENGTHS = (2048, 8192, 32768, 131072)
# Invented: how many times the bound each takes, forward and backward.
SLOWER = {
    OWN: (1.3, 2.1),
    "eager": (16.0, 22.0),
    "compile": (15.0, 17.0),
    "fft": (36.0, 45.0),
    "flashfftconv": (9.0, 11.0),
    "vortex": (20.0, None),
    "savanna": (4.3, 30.0),
    "cudnn": (4.2, 10.0),
}
WITHOUT = {
    "flashfftconv": ("featurizer",),
    "vortex": ("featurizer",),
    "savanna": ("featurizer", "skip"),
}


def _timing(us: float) -> Timing:
    return Timing(low=0.98 * us, median=us, high=1.03 * us)


def _bounds(length: int) -> dict[str, float]:
    forward, backward = 5 + length / 125, 5 + length / 72
    return {"forward": forward, "backward": backward, "both": forward + backward}


def _outcome(name: str, length: int) -> Outcome:
    forward, backward = SLOWER[name]
    bounds = _bounds(length)
    times = {"forward": bounds["forward"] * forward}
    reasons = {}
    if backward is not None:
        times["backward"] = bounds["backward"] * backward
        times["both"] = sum(times.values())
    else:
        reasons = dict.fromkeys(("backward", "both"), "it has no backward")
    if name == "fft" and length == LENGTHS[-1]:
        times = {"forward": times["forward"]}
        reasons = dict.fromkeys(("backward", "both"), "out of memory")
    known = BASELINES.get(name)
    return Outcome(
        baseline=name,
        does="" if known is None else known.does,
        layout="BDL" if known is None else known.layout,
        without=WITHOUT.get(name, ()),
        batch=1,
        length=length,
        times={d: _timing(us) for d, us in times.items()},
        shares={d: bounds[d] / us for d, us in times.items()},
        reasons=reasons,
        error=0.0023,
        gradient_error=0.0026 if backward is not None else None,
        step=_timing(1.5 * times["both"]) if "both" in times else None,
        peak={"forward": 1.0, "both": 5.1},
        captured=name != "compile",
    )


def bench_results(lengths: tuple[int, ...] = LENGTHS, *, kernels: bool = True) -> Results:
    """As of an operator like hyena_mr on an H200, with invented times."""
    outcomes = [_outcome(name, n) for name in SLOWER for n in lengths]
    for name, reason in (
        ("causal_conv1d", "does not apply: it takes 2 to 4 taps, and this filter has 128"),
        ("fla", "wrong: error 0.31 in y"),
        ("mamba_ssm", "not installed: there is no module mamba_ssm"),
    ):
        does, layout = BASELINES[name].does, BASELINES[name].layout
        outcomes.append(Outcome(baseline=name, does=does, layout=layout, reason=reason))
    steps = tuple(
        Steps(batch=batch, us=Timing(0.9 * us, us, 1.1 * us), bound=0.8 * us, host=21.0)
        for batch, us in ((1, 2.5), (64, 6.25))
    )
    efforts = {
        "forward": Effort(bytes=8.0, flops=40.0, product_flops=384.0),
        "backward": Effort(bytes=14.0, flops=90.0, product_flops=1152.0),
    }
    return Results(
        op="invented",
        digest="0" * 64,
        channels=4096,
        plan="toeplitz/BDL/recompute",
        schedule="forward: ROWS=8 BLOCK_D=1",
        origins={
            "forward": "tuned on NVIDIA H200 (2026-11-25); 71.5 us at B=1 L=8192",
            "backward": "default",
        },
        not_taken=("tuned config of direct/BLD/recompute",),
        dtype="bfloat16",
        gpu="no GPU",
        target="H200",
        versions={"python": "3.11.0", "torch": "2.11.0", "triton": "3.6.0"},
        date="2026-01-01",
        checks=63,
        interrupted=False,
        bound_bytes={"forward": 8.0, "backward": 14.0},
        sizes=tuple(
            Size(
                batch=1,
                length=n,
                bounds=_bounds(n),
                predicted={
                    "forward": 1.1 * _bounds(n)["forward"],
                    "backward": 3.4 * _bounds(n)["backward"],
                },
                peak={"forward": 1.0, "both": 5.06},
            )
            for n in lengths
        ),
        steps=steps if kernels else (),
        efforts=efforts if kernels else {},
        outcomes=tuple(outcomes),
    )

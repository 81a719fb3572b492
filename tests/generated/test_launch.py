"""How a generated file launches kernels, on a stand-in for one: no GPU is needed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from sh2gen.base.process import Worker
from sh2gen.build.build import Compilers, build
from sh2gen.emit.emit import emit
from sh2gen.emit.kernels import StepCall
from sh2gen.lower import plans
from sh2gen.plan.plan import Plan
from sh2gen.runtime.measure import activation
from sh2gen.runtime.operator import Operator
from sh2gen.schedule.config import ROLES, schedule
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.tuning.journal import Task
from sh2gen.tuning.lab import DECODED, Workbench
from tests.gpus import H200
from tests.strategies_schedules import written

if TYPE_CHECKING:
    from tests.generated.conftest import Case


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters of a generated file, at its own width."""
    found: dict[str, tuple[int, ...]] = module.parameter_shapes(module.CHANNELS, module.GROUPS)
    return found


class Kernel:
    """Remembers its launches; the first of them gives a binary, which remembers its own."""

    def __init__(self) -> None:
        self.arg_names = ["x_ptr", "end", "ROWS", "TILES"]
        self.compiled: list[tuple[tuple[Any, ...], dict[str, int]]] = []
        self.direct: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Binary]:
        def run(*arguments: Any, **constants: int) -> Binary:
            self.compiled.append((arguments, constants))
            return Binary(self)

        return run


class Binary:
    """What Triton returns from the first launch of a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments: self.kernel.direct.append(arguments)


@pytest.mark.parametrize("case", ["hyena_bdl"], indirect=True)
def test_a_remembered_binary_takes_constants_in_the_order_of_the_kernel(case: Case) -> None:
    launch, kernel, x = case.operator.namespace.launch, Kernel(), torch.zeros(16)
    config = {"TILES": 2, "ROWS": 8, "num_warps": 1, "maxnreg": 0}
    for end in (5, 6):
        launch(kernel, 3, x, end, config=config, ROWS=8)
    compiled = {"ROWS": 8, "TILES": 2, "num_warps": 1, "enable_fp_fusion": True}
    assert kernel.compiled == [((x, 5), compiled)]
    assert kernel.direct == [(x, 6, 8, 2)]
    with pytest.raises(AssertionError, match="order"):
        launch(Kernel(), 3, x, 5, config=config, TILES=2)


@pytest.mark.parametrize("variant", [True, False])
@pytest.mark.parametrize("case", ["blocks_bdl"], indirect=True)
def test_a_variant_is_launched_with_its_own_config(
    case: Case, variant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 channels of 32 segments to a program of the variant, of 8 segments to one of the other."""
    module = case.operator.namespace
    launches: list[tuple[Any, int, tuple[Any, ...], dict[str, Any]]] = []

    def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        launches.append((kernel, programs, arguments, constants))

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(module, "suits_sm90", lambda *call: variant)
    length = 4096
    inputs = [torch.zeros(2, 8, length, dtype=torch.bfloat16) for _ in range(3)]
    parameters = [torch.zeros(shape) for shape in shapes_of(module).values()]
    module.launch_backward(inputs[0], inputs, parameters, [])
    kernel, grid, arguments, constants = launches[0]
    name = "backward_sm90" if variant else "backward"
    config = module.configs_of(inputs[0], 8, 2)[name]
    assert kernel is (module.tiny_blocks_backward_sm90 if variant else module.tiny_blocks_backward)
    assert constants["config"] == config and ("EVEN" in constants) != variant
    segments, block = (32, 64) if variant else (8, 32)
    assert (config["SEGMENTS"], config["BLOCK_T"]) == (segments, block)
    tiles, along_time = arguments[-1], arguments[-2]
    assert along_time * tiles * segments * block >= length
    assert grid == 2 * along_time * 2  # batch, and groups
    partials, by_group = arguments[-7], arguments[-6]
    # The variant sums the two halves of its rows.
    assert len(partials) == 2 * along_time * (segments // 2 if variant else segments)
    assert by_group.shape == (2 * along_time, 65, 2)


class Driver:
    """Says that there is an H200, without one."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Answers(Worker):
    """Stands for the process on the GPU where only builds matter."""

    def run(self, job: str, time_limit: float) -> dict[str, Any]:
        sizes = json.loads(job).get("workloads", ())
        return {"status": "ok", "us": [[1.0, 1.0, 1.0]] * len(sizes)}


def asked_for(module: Any, monkeypatch: pytest.MonkeyPatch) -> set[tuple[Any, ...]]:
    """What launches of a generated file ask the compiler for from now on, as if on an H200: names
    of kernels and their constants.
    """
    found: set[tuple[Any, ...]] = set()

    def launch(
        kernel: Any, programs: int, *arguments: Any, config: dict[str, int], **constants: int
    ) -> None:
        left = kernel.arg_names[len(arguments) + len(constants) :]
        constants |= {name: config[name] for name in left}
        options = {name: config[name] for name in module.TOLD if config.get(name)}
        kernel.warmup(*arguments, grid=(programs,), **constants, **options, enable_fp_fusion=True)
        found.add((kernel.__name__, *constants.items()))

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    if hasattr(module, "suits_sm90"):
        monkeypatch.setattr(module, "suits_sm90", without_device(module))
    return found


def without_device(module: Any) -> Callable[..., bool]:
    """`suits_sm90` of a generated file, as if all tensors were on an H200."""
    text = inspect.getsource(module.suits_sm90)
    for line in (
        '        and x.device.type == "cuda"\n',
        "        and torch.cuda.get_device_capability(x.device) == (9, 0)\n",
    ):
        assert text.count(line) == 1
        text = text.replace(line, "")
    names = dict(vars(module))
    exec(text, names)
    found: Callable[..., bool] = names["suits_sm90"]
    return found


GATED = {"gates": {"pre": True, "post": True}, "featurizer": {"length": 2}}
MODES = {"kind": "modal", "modes": 4, "parametrisation": "log_poles"}
CARRIED = {"state": {"initial": True, "final": True}}
OPERATORS: dict[str, dict[str, Any]] = {  # few statements, which compile in a second
    "few": {"channels": 64, "filter": {"kind": "explicit", "length": 3, "groups": 4}, **GATED},
    "many": {"channels": 256, "filter": {"kind": "explicit", "length": 20, "groups": 16}},
    "few_modes": {
        "channels": 32,
        "filter": MODES | {"groups": 32},
        "featurizer": {"length": 2},
    },
    "stateful": {"channels": 4096, "filter": MODES | {"groups": 4096}, **CARRIED},
}
# An operator, workloads, and the kernels that must be among those that are launched, and that must
# not.
TUNED: list[tuple[str, list[tuple[int, int]], set[str], set[str]]] = [
    ("few", [(1, 2048)], set(), set()),
    ("few", [(1, 1001), (1, 2048)], set(), set()),
    ("many", [(1, 4096)], {"backward_sm90"}, {"backward"}),
    ("many", [(1, 4096), (2, 520)], {"backward_sm90", "backward"}, set()),
    ("few_modes", [(1, 16384)], {"forward_sums", "backward_sums", "join_splits"}, set()),
    ("few_modes", [(1, 512)], set(), {"forward_sums", "backward_sums", "join_splits"}),
    ("few_modes", [(1, 16381), (1, 512)], {"forward_sums", "join_splits"}, set()),
    ("stateful", [(1, 2048)], set(), {"forward_sums"}),
]


def made(op: str, sizes: list[tuple[int, int]]) -> tuple[OpSpec, Plan]:
    """An operator for these workloads, by the algorithm that it is for."""
    workloads = [{"batch": batch, "length": length} for batch, length in sizes]
    spec = spec_from_dict({"op": op, "workloads": workloads, **OPERATORS[op]})
    algorithm = {"few": "direct", "many": "toeplitz"}.get(op, "modal")
    return spec, plans(spec, algorithm)[0]


@pytest.mark.parametrize(
    ("op", "sizes", "among", "missing"),
    TUNED,
    ids=[f"{op}-{'-'.join(str(length) for _, length in sizes)}" for op, sizes, *_ in TUNED],
)
def test_launches_of_a_candidate_find_what_was_built_and_all_that_was_built_is_launched(
    op: str,
    sizes: list[tuple[int, int]],
    among: set[str],
    missing: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the workloads and at the short case: nothing is compiled in the process on the GPU."""
    spec, plan = made(op, sizes)
    cache = tmp_path / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(triton.knobs.cache, "dir", str(cache))
    default = schedule(spec, plan)
    chosen = default.forward
    task = Task(spec=spec, plan=plan, direction="forward")
    with closing(Compilers(1, 120)) as compilers, closing(Answers((), "")) as worker:
        bench = Workbench(
            task,
            H200,
            starts={role: default.config(role) for role in ROLES},
            folder=tmp_path,
            compilers=compilers,
            worker=worker,
        )
        candidate = bench._prepare(chosen)
        for kernel, future in candidate.kernels:
            assert "cubin" in future.result(), (kernel.name, future.result())
    # `Workbench` has built the same for its bounds.
    built = {path.name for path in cache.iterdir()}
    operator = Operator(Path(candidate.file))
    module = operator.namespace
    operator.use(candidate.configs)
    binaries = asked_for(module, monkeypatch)
    for batch, length in (candidate.short, *sizes):
        launch_once(operator, batch, length)
    assert {path.name for path in cache.iterdir()} == built
    assert len(binaries) == len(candidate.kernels)
    names = {name.removeprefix(f"{op}_") for name, *_ in binaries}
    assert among <= names and not missing & names


@pytest.mark.parametrize(("op", "double"), [("few", 0), ("many", 32768), ("few_modes", 32768)])
def test_steps_of_a_candidate_find_what_was_built(
    op: str, double: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the property `decode` makes, which are noted, and those that are timed, of few
    rows and of many.
    """
    spec, plan = made(op, [(1, 512)])
    batches = (1, 65536 // spec.channels)
    workloads = tuple(Workload(batch=batch, length=1) for batch in batches)
    spec = replace(spec, workloads=workloads)
    cache = tmp_path / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(triton.knobs.cache, "dir", str(cache))
    default = schedule(spec, plan)
    config = schedule(spec, plan, {"decode": {"DOUBLE": double}}).decode
    task = Task(spec=spec, plan=plan, direction="decode")
    with closing(Compilers(1, 120)) as compilers, closing(Answers((), "")) as worker:
        bench = Workbench(
            task,
            H200,
            starts={role: default.config(role) for role in ROLES},
            folder=tmp_path,
            compilers=compilers,
            worker=worker,
        )
        candidate = bench._prepare(config)
        for kernel, future in candidate.kernels:
            assert "cubin" in future.result(), (kernel.name, future.result())
    built = {path.name for path in cache.iterdir()}
    operator = Operator(Path(candidate.file))
    names = operator.namespace
    operator.use(candidate.configs)
    launched = asked_for(names, monkeypatch)
    timed = [StepCall(batch=batch, slotted=True) for batch in batches]
    for call in (*timed, *(replace(one, batch=b) for b in (2, batches[1]) for one in DECODED)):
        shape = (call.batch, spec.channels, call.steps)
        inputs = [torch.zeros(shape, dtype=torch.bfloat16) for _ in names.INPUTS]
        parameters = [torch.zeros(shape) for shape in shapes_of(names).values()]
        dtype = torch.float32 if call.wide else torch.bfloat16
        how = {"steps": call.room, "draft": call.draft, "dtype": dtype}
        state = names.initial_state(call.batch, spec.channels, **how)
        slots = torch.arange(call.batch, dtype=torch.int32) if call.slotted else None
        names.launch_decode(inputs, parameters, state, slots)
    assert {path.name for path in cache.iterdir()} == built
    assert len(launched) == len(candidate.kernels) == (10 if double else 5)


@pytest.mark.parametrize("op", ["few", "many", "stateful"])
def test_a_launch_finds_what_was_built_ahead_of_time(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled by launches on a GPU after `compile` on the same machine."""
    spec, plan = made(op, [(1, 2048)])
    source = emit(spec, plan, schedule(spec, plan))
    cache = tmp_path / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(triton.knobs.cache, "dir", str(cache))
    build(source, H200, alignments=("aligned",), workers=1)
    built = {path.name for path in cache.iterdir()}
    operator = Operator(written(spec, plan, schedule(spec, plan), tmp_path))
    launched = asked_for(operator.namespace, monkeypatch)
    launch_once(operator, 1, 2048)
    backward = "backward_sm90" if op == "many" else "backward"
    names = {name for name, *_ in launched}
    assert names >= {f"{op}_forward", f"{op}_{backward}", "sum_partials"}
    assert {path.name for path in cache.iterdir()} == built


def launch_once(operator: Operator, batch: int, length: int) -> None:
    """Forward and backward of a file as they are timed, on a stand-in for its kernels."""
    module = operator.namespace
    inputs = [activation(operator, batch, length, torch.bfloat16, "cpu") for _ in module.INPUTS]
    parameters = [torch.zeros(shape) for shape in shapes_of(module).values()]
    state = {}
    if hasattr(module, "stateful_op"):
        past = module.past_for_kernels(module.zero_state_like(inputs[0]), inputs[0])
        state = {"state": past}
    y, *saved = module.launch_forward(inputs, parameters, **state)
    more = {"d_leaving": saved.pop()} if state else {}
    module.launch_backward(y, inputs, parameters, saved, **state, **more)

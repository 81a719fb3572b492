"""What is launched: of the variants of a kernel, and in the short case of a large candidate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sh2gen.base.resources import folder
from sh2gen.build.load_module import load_module
from sh2gen.cost.cost import predict
from sh2gen.emit.emit import emit
from sh2gen.emit.launched import SHORT, launched, short_shape
from sh2gen.lower import plans
from sh2gen.plan.actions import Action, Allocate, Give, Launch
from sh2gen.plan.geometry import sm90_config, sm90_suits
from sh2gen.plan.kernel import Kernel, Role, Variant
from sh2gen.plan.source import KernelSource
from sh2gen.runtime.operator import InterpreterRunner
from sh2gen.schedule.config import Schedule, interpreter_schedule, schedule
from sh2gen.spec.decode import load_spec
from sh2gen.spec.language import DType, Workload
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target
from sh2gen.verify.miniatures import miniature
from tests.strategies_schedules import interpreted, random_tensors, transposed


def made(op: str, channels: int, sizes: list[tuple[int, int]]) -> tuple[OpSpec, Schedule]:
    spec = load_spec(folder("ops") / f"{op}.yaml")
    inner = replace(spec.filter, groups=spec.filter.groups * channels // spec.channels)
    workloads = tuple(Workload(batch=batch, length=length) for batch, length in sizes)
    spec = replace(spec, channels=channels, filter=inner, workloads=workloads)
    return spec, schedule(spec, plans(spec)[0])


@pytest.mark.parametrize(
    ("op", "channels", "sizes", "short"),
    [
        ("hyena_se", 4096, [(1, 8192)], SHORT),
        ("hyena_se", 4096, [(1, 8191)], (2, 1032 + 7)),
        ("hyena_se", 4096, [(1, 512)], SHORT),
        ("hyena_li", 4096, [(1, 131072)], SHORT),
        ("hyena_li", 32, [(1, 512)], SHORT),
        ("hyena_li", 32, [(1, 131072)], None),
        ("hyena_mr", 4096, [(1, 131072)], None),
        ("hyena_mr", 4096, [(1, 131072), (8, 1001)], None),
    ],
)
def test_the_short_case_launches_what_the_largest_workload_launches(
    op: str, channels: int, sizes: list[tuple[int, int]], short: tuple[int, int] | None
) -> None:
    spec, scheduled = made(op, channels, sizes)
    plan = plans(spec)[0]
    kernels = emit(spec, plan, scheduled).kernels
    found = short_shape(spec, plan, scheduled, kernels, sizes, 90)
    assert short in (None, found)
    assert found[0] == 2 and 1032 <= found[1] <= 16384

    def at(shape: tuple[int, int]) -> set[KernelSource]:
        return set(launched(spec, plan, scheduled, kernels, [shape], 90))

    if sizes[0][1] > 1032:
        assert at(sizes[0]) <= at(found)


def test_a_kernel_for_sm_90_is_launched_there_and_not_elsewhere() -> None:
    spec, scheduled = made("hyena_mr", 4096, [(1, 131072)])
    plan = plans(spec)[0]
    kernels = emit(spec, plan, scheduled).kernels
    for capability, suffix in ((90, "backward_sm90"), (100, "backward"), (80, "backward")):
        names = [
            one.name for one in launched(spec, plan, scheduled, kernels, [(1, 8192)], capability)
        ]
        assert names == ["hyena_mr_forward", f"hyena_mr_{suffix}", "sum_partials"]


@pytest.mark.parametrize(
    ("suited", "launched"),
    [
        ({"sm90", "second"}, "backward_sm90"),
        ({"sm90"}, "backward_sm90"),
        ({"second"}, "backward_second"),
        (set(), "backward"),
    ],
)
def test_the_first_variant_that_suits_a_call_is_launched(
    suited: set[str], launched: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(kernel: Kernel) -> Kernel:
        more = tuple(replace(variant, name="second") for variant in kernel.variants)
        return replace(kernel, variants=(*kernel.variants, *more))

    spec, scheduled = made("hyena_mr", 32, [(1, 512)])
    plan = plans(spec)[0].with_kernels(twice)
    path = tmp_path / "hyena_mr.py"
    path.write_text(emit(spec, plan, scheduled).text)
    module = load_module(path, interpret=True)
    x, parameters = torch.zeros(1, 32, 512), [torch.zeros(s) for s in ((2, 128), (96, 3), (2,))]
    configs = module.configs_of(x, 32, 2)
    configs |= {f"backward_{name}": dict(configs["backward"]) for name in ("sm90", "second")}
    own = [configs[f"backward_{name}"] for name in suited]
    names = []
    monkeypatch.setattr(module, "configs_of", lambda *_: configs)
    monkeypatch.setattr(module, "suits_sm90", lambda *a: any(a[-1] is one for one in own))
    monkeypatch.setattr(module, "launch", lambda kernel, *_, **__: names.append(kernel.__name__))
    module.launch_backward(x, [x, x, x], parameters, [])
    assert names == [f"hyena_mr_{launched}", "sum_partials"]


def test_two_variants_of_one_name_are_refused() -> None:
    def twice(kernel: Kernel) -> Kernel:
        return replace(kernel, variants=kernel.variants * 2)

    spec, scheduled = made("hyena_mr", 32, [(1, 512)])
    with pytest.raises(AssertionError, match="_backward_sm90 stand for several things"):
        emit(spec, plans(spec)[0].with_kernels(twice), scheduled)


def another(kernel: Kernel) -> Kernel:
    """The kernel with a variant of the same text, under a name and a config of its own."""
    variant = Variant(
        name="other",
        skeleton=kernel.skeleton,
        parts=kernel.parts,
        phases=None,
        arguments=kernel.arguments,
        language="triton",
        capability=90,
        io=DType.FLOAT32,
        config=sm90_config,  # none: the test gives it one
        grid=kernel.grid,
        sizes=sm90_suits,
        suits="suits_sm90",
    )
    return replace(kernel, variants=(variant,))


@pytest.mark.parametrize("op", ["short_conv_3", "hyena_mr", "hyena_li"])
def test_a_variant_of_any_kernel_is_launched_if_it_suits(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, of every algorithm, with tiles of its own."""
    width = load_spec(folder("ops") / f"{op}.yaml").group_width
    spec, _ = made(op, width, [(1, 300)])
    plan = plans(spec)[0].with_kernels(another)
    scheduled = interpreter_schedule(spec, plan)
    runner = interpreted(spec, plan, scheduled, tmp_path)
    module = runner.namespace
    inputs, parameters, dy = random_tensors(spec, 1, 300, dtype=torch.float32)
    laid = [{n: transposed(x, runner.layout) for n, x in inputs.items()}, parameters]
    laid.append(transposed(dy, runner.layout))
    names: list[str] = []
    launch = module.launch

    def noted(kernel: Any, *arguments: Any, **constants: Any) -> None:
        names.append(kernel.__name__.removeprefix(f"{op}_"))
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(module, "launch", noted)
    results = []
    for suits in (False, True):
        groups = spec.filter.groups
        first = laid[0][spec.inputs[0]]
        configs = module.configs_of(first, spec.channels, groups)
        for role in ("forward", "backward"):
            own = dict(configs[role])
            if "SEGMENTS" not in own:
                own["TILES"] = 2 * own["TILES"]
            configs[f"{role}_other"] = own
        monkeypatch.setattr(module, "suits_sm90", lambda *_, suits=suits: suits)
        names.clear()
        results.append((runner.forward(*laid[:2]), runner.gradients(*laid)))
        suffix = "_other" * suits
        assert {f"forward{suffix}", f"backward{suffix}"} <= set(names)
        assert not {f"forward{'' if suits else '_other'}"} & set(names)
    (y, gradients), (other_y, others) = results
    assert torch.equal(y, other_y)
    for name in inputs:
        assert torch.equal(gradients[name], others[name]), name


def test_another_role_has_a_launcher_of_its_own(tmp_path: Path) -> None:
    """From its actions alone: what forward does but for what it stores, under another name."""
    for op in ("short_conv_3", "hyena_mr", "hyena_li", "hyena_li_stateful"):
        small = miniature(load_spec(folder("ops") / f"{op}.yaml"))
        plan = next(plan for plan in plans(small) if plan.kernels)
        actions: list[Action] = []
        for action in plan.actions[Role.FORWARD]:
            assert isinstance(action, Launch | Allocate | Give)
            match action:
                case Launch(kernel=kernel):
                    own = replace(kernel, name=kernel.name.replace("for", "after"))
                    actions.append(replace(action, kernel=own))
                case Give():
                    actions.append(Give(names=("y",), doc="[y], again."))
                case _:
                    actions.append(action)
        again = replace(plan, actions=plan.actions | {"again": tuple(actions)})
        path = tmp_path / f"{op}.py"
        path.write_text(emit(small, again, interpreter_schedule(small, plan)).text)
        runner = InterpreterRunner(path)
        module = runner.namespace
        rng = torch.Generator().manual_seed(0)
        shape = (2, 300, small.channels) if runner.layout == "BLD" else (2, small.channels, 300)
        inputs = [torch.randn(shape, generator=rng) for _ in small.inputs]
        parameters = {p.name: -torch.rand(p.shape, generator=rng) for p in small.parameters}
        given = inputs, list(parameters.values())
        state = {}
        if hasattr(module, "stateful_op"):
            past = module.past_for_kernels(module.zero_state_like(inputs[0]), inputs[0])
            state = {"state": past}
        (y,) = module.launch_again(*given, **state)
        first, *_ = module.launch_forward(*given, **state)
        assert torch.equal(y, first) and y.isfinite().all()
        assert f"{op}_afterward" in path.read_text()


def test_two_kernels_of_one_role_are_launched_one_after_another(tmp_path: Path) -> None:
    """Each with its own config and grid; the second writes over what the first has written."""
    spec = miniature(load_spec(folder("ops") / "hyena_mr.yaml"))
    plan = next(plan for plan in plans(spec) if plan.algorithm == "toeplitz")
    kernel = plan.kernel("forward")
    assert kernel is not None
    second = replace(kernel, name="forward_again")
    actions: list[Action] = []
    for action in plan.actions[Role.FORWARD]:
        actions.append(action)
        if isinstance(action, Launch):
            actions.append(replace(action, kernel=second))
    both = replace(plan, actions=plan.actions | {Role.FORWARD: tuple(actions)})
    chosen = interpreter_schedule(spec, plan)
    path = tmp_path / "hyena_mr.py"
    path.write_text(emit(spec, both, chosen).text)
    runner = InterpreterRunner(path)
    inputs, parameters, _ = random_tensors(spec, 1, 100, dtype=torch.float32)
    names, module = [], runner.namespace
    launch = module.launch

    def noted(kernel: Any, *arguments: Any, **constants: Any) -> None:
        names.append(kernel.__name__)
        launch(kernel, *arguments, **constants)

    module.launch = noted
    y = runner.forward(inputs, parameters)
    assert names == ["hyena_mr_forward", "hyena_mr_forward_again"] and y.isfinite().all()
    workload, gpu = spec.workloads[0], target("H200")
    one, two = (predict(spec, p, chosen, "forward", workload, gpu) for p in (plan, both))
    assert two.memory == 2 * one.memory and one.seconds < two.seconds <= 2 * one.seconds

"""On a GPU: every plan in bfloat16, library ops, CUDA graphs and torch.compile. Run by hand.

python -m pytest tests/gpu
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from sh2gen.emit.emit import emit
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import target
from sh2gen.tuning.choose import candidates
from sh2gen.verify.case import poisoned
from sh2gen.verify.report import Report
from sh2gen.verify.verify import verify
from tests.generated.test_distributed import check_halves

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HYENA = {
    "op": "gpu_hyena",
    "channels": 96,
    "filter": {"kind": "explicit", "length": 7, "groups": 6, "taps": "lag_last"},
    "featurizer": {"length": 3},
    "gates": {"pre": True, "post": True},
    "skip": "channel",
}
# 16 channels a group, and taps over three blocks: backward has a variant for sm_90.
LONG = HYENA | {
    "op": "gpu_hyena_mr",
    "filter": {"kind": "explicit", "length": 100, "groups": 6, "taps": "lag_last"},
}
MODES = {"kind": "modal", "modes": 16, "groups": 96, "parametrisation": "p_gamma"}
MODAL = HYENA | {"op": "gpu_hyena_li", "filter": MODES}
CARRIED: dict[str, Any] = {"state": {"initial": True, "final": True}}
PLANS = ["direct/BDL/recompute", "direct/BDL/save", "direct/BLD/recompute", "direct/BLD/save"]
VARIANTS: dict[str, dict[str, Any]] = {
    "thirds": {},
    "interleaved": {"layout": {"projection": "interleaved"}},
    "stateful": CARRIED,
    "exact": {"precision": "exact"},
    "documents": {"sequences": "packed"},
    "few": {"channels": 48, "filter": MODES | {"groups": 48}},  # channels: sequences in splits
}
Case = tuple[str, str]  # a plan and a variant
CASES = [
    *(
        (plan, v)
        for v in ("thirds", "interleaved")
        for plan in (*PLANS, "fft", "toeplitz", "modal")
    ),
    *((plan, "stateful") for plan in ("direct/BDL/recompute", "toeplitz", "modal")),
    *((plan, "exact") for plan in ("toeplitz", "modal")),
    *((plan, "documents") for plan in (*PLANS, "fft", "toeplitz", "modal")),
    ("modal", "few"),
]


def made(folder: Path, spec: OpSpec, plan: str) -> Operator:
    """The operator by the first plan whose name begins with `plan`."""
    ranked = candidates(spec, target("H200"))
    chosen = next(c for c in ranked if c.plan.name.startswith(plan))
    path = folder / f"{spec.op}.py"
    path.write_text(emit(spec, chosen.plan, chosen.schedule).text)
    return Operator(path)


def arguments(operator: Operator, length: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    channels = operator.spec.channels
    shape = (2, channels, length) if operator.layout == "BDL" else (2, length, channels)
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    return inputs, [torch.randn(p.shape, device="cuda") * 0.3 for p in operator.spec.parameters]


def fields_of(plan: str) -> dict[str, Any]:
    return {"toeplitz": LONG, "modal": MODAL}.get(plan, HYENA)


def verified(folder: Path, plan: str, variant: str) -> Report:
    """Every property of one plan, in lengths around a tile and a vector."""
    spec = spec_from_dict(fields_of(plan) | VARIANTS[variant])
    runner = OperatorRunner(made(folder, spec, plan), "cuda")
    shapes = [(1, 1), (2, 37), (1, 264), (3, 1000)]
    shapes += [(2, 1544), (1, 4104)] if plan in ("toeplitz", "modal") else []
    shapes += [(1, 16393), (2, 32768)] if variant == "few" else []  # nine tiles, and sixteen
    return verify(spec, runner, dtype=torch.bfloat16, shapes=shapes, device="cuda")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Case, Future[Report]]]:
    """Every plan verified in a process of its own, all at once.

    Nearly all the time goes to compilers: each plan is compiled for every combination of strides,
    bounds and alignment that it meets, one after another. What they make stays in Triton's cache.
    """
    workers = min(len(CASES), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield {
            case: pool.submit(verified, tmp_path_factory.mktemp("verified"), *case)
            for case in CASES
        }


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_plan(case: Case, reports: dict[Case, Future[Report]]) -> None:
    reports[case].result().require()


@pytest.mark.parametrize("plan", ["direct/BDL/recompute", "direct/BLD/save", "toeplitz", "modal"])
def test_another_width_than_that_of_the_file(plan: str, tmp_path: Path) -> None:
    """By the default configs of that width: also where they split a sequence or run a variant."""
    operator = made(tmp_path, spec_from_dict(fields_of(plan)), plan)
    for channels, groups in ((80, 5), (64, 64), (512, 32)):
        own = {"channels": channels, "filter": operator.spec.to_dict()["filter"]}
        own["filter"] |= {"groups": groups}
        spec = spec_from_dict(fields_of(plan) | own)
        verify(
            spec,
            OperatorRunner(operator, "cuda"),
            dtype=torch.bfloat16,
            shapes=[(1, 37), (2, 1544), (1, 16384)],
            device="cuda",
            property_shapes=[(2, 1544)],
        ).require()


@pytest.mark.parametrize("plan", ["direct/BDL/recompute", "direct/BLD/save"])
def test_library_ops(plan: str, tmp_path: Path) -> None:
    operator = made(tmp_path, spec_from_dict(HYENA), plan)
    inputs, parameters = arguments(operator, 37)
    for tensor in (*inputs, *parameters):
        tensor.requires_grad_()
    torch.library.opcheck(operator.namespace.forward_op, (*inputs, *parameters))


@pytest.mark.parametrize("plan", ["direct/BDL/recompute", "direct/BLD/recompute", "toeplitz"])
def test_cuda_graph(plan: str, tmp_path: Path) -> None:
    """A captured step computes from new contents what an eager step computes."""
    operator = made(tmp_path, spec_from_dict(LONG if plan == "toeplitz" else HYENA), plan)
    inputs, parameters = arguments(operator, 1032 if plan == "toeplitz" else 264)
    dy = torch.randn_like(inputs[0])

    given = [*inputs, *parameters, *([0, None] if operator.spec.filter.decay else [])]

    def step() -> list[torch.Tensor]:
        y = operator.namespace.forward_op(*given)
        return [y, *operator.namespace.backward_op(dy, *given)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in inputs:
        tensor.normal_()
    graph.replay()
    torch.cuda.synchronize()
    for found, expected in zip(captured, step(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("plan", ["direct/BDL/recompute", "direct/BLD/save", "toeplitz", "modal"])
def test_calls_from_tapes(plan: str, tmp_path: Path) -> None:
    """What library ops compute, bit for bit: again and again, on another stream, in a graph that
    is captured of a training step, from odd addresses and of packed features.
    """
    operator = made(tmp_path, spec_from_dict(fields_of(plan)), plan)
    names = operator.namespace

    def step(function: Any, tensors: list[torch.Tensor], dy: torch.Tensor) -> list[torch.Tensor]:
        y = function(*tensors)
        return [y.detach(), *torch.autograd.grad(y, tensors, dy)]

    def by_ops(*arguments: Any) -> list[torch.Tensor]:
        with pytest.MonkeyPatch.context() as patch, poisoned():
            patch.setattr(names, "DIRECT", ())
            return step(*arguments)

    def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    function, packed = getattr(names, names.OP), getattr(names, f"{names.OP}_packed")
    for length, odd, whole in ((37, 0, False), (520, 0, True), (520, 1, False), (520, 0, False)):
        inputs, parameters = arguments(operator, length)
        inputs = [shifted(x, odd) for x in inputs]
        axis, dy = names.CHANNEL, torch.randn_like(inputs[0])
        if whole:
            inputs = [torch.cat(inputs, axis)]
        tensors = [x.requires_grad_() for x in (*inputs, *parameters)]
        call = packed if whole else function
        wanted = by_ops(call, tensors, dy)
        with poisoned():
            assert all(same(step(call, tensors, dy), wanted) for _ in range(2))
    assert names.TAPES and None not in names.TAPES.values()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        assert same(step(call, tensors, dy), wanted)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(call, tensors, dy)
    with torch.no_grad():
        for x in inputs:
            x.normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert same(captured, by_ops(call, tensors, dy))


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize(
    "plan", ["direct/BDL/recompute", "direct/BLD/recompute", "toeplitz", "modal"]
)
def test_steps_in_a_graph(plan: str, draft: bool, tmp_path: Path) -> None:
    """Captured steps of a pool move its states on with every replay, as plain PyTorch does; with
    what was accepted of drafts too.
    """
    operator = made(tmp_path, spec_from_dict(fields_of(plan)), plan)
    names, channels = operator.namespace, operator.spec.channels
    inputs, parameters = arguments(operator, 2)
    batch = inputs[0].shape[0]
    slots = torch.arange(batch, 0, -1, dtype=torch.int32, device="cuda")
    accepted = torch.ones(batch, dtype=torch.int32, device="cuda")
    how: dict[str, Any] = {"steps": 2, "draft": draft, "dtype": torch.bfloat16, "device": "cuda"}
    state, other = (names.initial_state(batch + 1, channels, **how) for _ in range(2))
    y = torch.empty_like(inputs[0])

    def step() -> None:
        y.copy_(names.decode(inputs, parameters, state, slots))
        if draft:
            state.commit(accepted, slots)

    with torch.no_grad():
        step()  # compiles
        state.reset()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for _ in range(5):
            for x in inputs:
                x.normal_()
            graph.replay()
            with operator.plain():
                wanted = names.decode(inputs, parameters, other, slots)
                if draft:
                    other.commit(accepted, slots)
            assert (y.float() - wanted.float()).norm() < 8e-3 * wanted.float().norm()
    assert torch.equal(state.count, other.count) and torch.equal(state.done, other.done)
    assert state.count.tolist() == [0, *[5 * (1 if draft else 2)] * batch]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("plan", ["direct/BDL/recompute", "toeplitz", "modal"])
def test_several_devices(plan: str, tmp_path: Path) -> None:
    """The same bits on each of two devices, whichever is current, and by one module a device."""
    operator = made(tmp_path, spec_from_dict(fields_of(plan)), plan)
    names = operator.namespace
    function = getattr(names, names.OP)
    inputs, parameters = arguments(operator, 520)
    dy = torch.randn_like(inputs[0])
    results = []
    for current in (0, 1, 0):
        for device in (1, 0):
            with torch.cuda.device(current), poisoned():
                tensors = [x.to(f"cuda:{device}").requires_grad_() for x in (*inputs, *parameters)]
                for _ in range(2):  # the second from a tape
                    y = function(*tensors)
                    found = torch.autograd.grad(y, tensors, dy.to(y.device))
                    assert all(x.get_device() == device for x in (y, *found))
                    results.append([x.cpu() for x in (y.detach(), *found)])
    assert all(torch.equal(a, b) for one in results for a, b in zip(one, results[0], strict=True))
    assert {tape.device.index for tape in names.TAPES.values()} == {0, 1}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_data_parallel(tmp_path: Path) -> None:
    plan = "direct/BDL/recompute"
    check_halves(made(tmp_path, spec_from_dict(fields_of(plan)), plan).path, tmp_path, "cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
def test_ranks(sharding: str, tmp_path: Path) -> None:
    """The benchmark holds y and gradients over two ranks against one device before it times."""
    place = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "benchmarks/context.py", f"--sharding={sharding}"]
    command += ["--channels=512", "--lengths", "32768", f"--json={tmp_path / 'times.json'}"]
    environment = os.environ | {"PYTHONPATH": str(place)}
    subprocess.run(command, cwd=place, env=environment, check=True, timeout=300)
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert [row["op"] for row in rows] == ["hyena_se", "hyena_mr", "hyena_li"]


def shifted(x: torch.Tensor, elements: int) -> torch.Tensor:
    """A copy that begins so many elements after an aligned address."""
    memory = torch.empty(x.numel() + elements, dtype=x.dtype, device=x.device)
    return memory[elements:].view(x.shape).copy_(x)


@pytest.mark.parametrize("packing", ["thirds", "interleaved"])
@pytest.mark.parametrize(
    "segment",
    [{}, {"context": 72}, {"begin": 1024}, {"context": 8, "begin": 512, "end": 2048}],
    ids=str,
)
def test_a_variant_computes_what_the_kernel_for_any_call_does(
    segment: dict[str, int], packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the variant is for sm_90")
    spec = spec_from_dict(LONG | {"layout": {"projection": packing}})
    module = made(tmp_path, spec, "toeplitz").namespace
    asked: list[bool] = []
    suits = module.suits_sm90

    def suits_if(allowed: bool) -> None:
        def answer(*call: Any) -> bool:
            asked.append(allowed and suits(*call))
            return asked[-1]

        monkeypatch.setattr(module, "suits_sm90", answer)

    length, context = 2568, segment.get("context", 0)
    features = torch.randn(2, 3 * 96, context + length, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(2, 96, length, device="cuda", dtype=torch.bfloat16)
    parameters = [torch.randn(p.shape, device="cuda") * 0.3 for p in spec.parameters]
    results = []
    for allowed in (True, False):
        suits_if(allowed)
        results.append(module.launch_backward(dy, [features], parameters, [], **segment))
    assert asked == [True, False]
    for found, expected in zip(*results, strict=True):
        assert found.isfinite().all()
        error = (found.double() - expected.double()).norm() / expected.double().norm()
        assert error < 2**-8  # operands of skip are rounded once more


def test_nothing_beyond_a_tensor_is_accessed(tmp_path: Path) -> None:
    """dy and gradients begin with the segment, and each has an allocation of its own; inputs have
    a context before it.
    """
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer")
    op = tmp_path / "op.yaml"
    op.write_text(json.dumps(LONG))  # JSON is YAML
    script = Path(__file__).parents[2] / "benchmarks" / "sanitize.py"
    options = ["--tool=memcheck", "--padding=512", "--error-exitcode=1"]
    result = subprocess.run(
        [sanitizer, *options, sys.executable, str(script), str(op)],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    if torch.cuda.get_device_capability() == (9, 0):
        assert "gpu_hyena_mr_backward_sm90" in result.stdout


def test_library_ops_of_a_state(tmp_path: Path) -> None:
    operator = made(tmp_path, spec_from_dict(MODAL | CARRIED), "modal")
    namespace = operator.namespace
    inputs, parameters = arguments(operator, 37)
    past = namespace.past_for_kernels(namespace.zero_state_like(inputs[0]), inputs[0])
    tensors = [x.detach().requires_grad_() for x in (*inputs, *parameters, *past)]
    torch.library.opcheck(namespace.stateful_op, (*tensors, True))


COMPLEX = {"kind": "modal", "modes": 8, "groups": 96, "parametrisation": "complex"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("plan", "fields"),
    [
        ("direct/BDL/recompute", HYENA),
        ("toeplitz", LONG),
        ("modal", MODAL),
        ("modal", MODAL | CARRIED),
        ("modal", MODAL | {"filter": COMPLEX}),
    ],
    ids=["direct", "toeplitz", "modal", "modal-stateful", "complex"],
)
def test_parameters_of_another_dtype(
    plan: str, fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Results are those of the same numbers in float32, and gradients, but for rounding.

    Another dtype compiles to another kernel, whose multiplications and additions ptxas may fuse
    otherwise: sums differ in their last bit, and a value that is kept in bfloat16 in one of its.
    """
    operator = made(tmp_path, spec_from_dict(fields), plan)
    inputs, _ = arguments(operator, 264)
    layer = operator.module(device="cuda")
    given = {name: p.detach().to(dtype).float() for name, p in layer.named_parameters()}
    found = []
    for wanted in (dtype, torch.float32):
        parameters = {name: p.to(wanted).requires_grad_() for name, p in given.items()}
        y = operator(*inputs, **parameters)
        y = y[0] if "state" in fields else y
        found.append((y, *torch.autograd.grad(y.float().sum(), list(parameters.values()))))
    (y, *gradients), (same, *right) = found
    assert torch.equal(y, same)
    for a, b in zip(gradients, right, strict=True):
        one = 2**-8 * b.abs().max()  # a rounding of the largest, in bfloat16
        assert a.dtype == dtype and (a.double() - b.double()).abs().max() <= one


@pytest.mark.parametrize(
    ("plan", "fields"),
    [
        ("direct/BDL/recompute", HYENA | CARRIED),
        ("direct/BLD/recompute", HYENA | CARRIED),
        ("modal", MODAL | CARRIED),
    ],
    ids=["direct", "direct-bld", "modal"],
)
def test_empty_chunks(plan: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """No steps leave the state as it was; no sequences have gradients of zero."""
    operator = made(tmp_path, spec_from_dict(fields), plan)
    layer = operator.module(device="cuda")
    inputs, _ = arguments(operator, 40)
    _, state = layer(*inputs)
    axis = operator.namespace.TIME
    y, after = layer(*(x.narrow(axis, 0, 0) for x in inputs), state=state)
    assert y.shape[axis] == 0 and y.dtype == inputs[0].dtype
    assert all(torch.equal(a, b) for a, b in zip(after[:-1], state[:-1], strict=True))
    y, _ = layer(*(x[:0] for x in inputs))
    y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize(
    ("plan", "fields"), [("direct", HYENA), ("modal", MODAL), ("modal", MODAL | CARRIED)]
)
def test_derivatives_that_kernels_lack(plan: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """In forward mode and by torch.func: by plain PyTorch, beside kernels for all other calls."""
    operator = made(tmp_path, spec_from_dict(fields), plan)
    layer = operator.module(device="cuda")
    inputs = [x.float() for x in arguments(operator, 40)[0]]

    def function(x: torch.Tensor) -> torch.Tensor:
        found = layer(x, *inputs[1:])
        return found if isinstance(found, torch.Tensor) else found[0]

    leaf, t = inputs[0].clone().requires_grad_(), torch.randn_like(inputs[0])
    y = function(leaf)
    dy = torch.randn_like(y)
    (wanted,) = torch.autograd.grad(y, leaf, dy)
    tangent = torch.func.jvp(function, (inputs[0],), (t,))[1]
    found = torch.func.vjp(function, inputs[0])[1](dy)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())
    product = (wanted.double() * t).sum()
    scale = (wanted.double().norm() * t.double().norm()).item()
    assert abs((tangent.double() * dy).sum() - product) < 1e-4 * scale


@pytest.mark.parametrize(
    ("plan", "fields"),
    [
        ("direct/BDL/recompute", HYENA),
        ("direct/BDL/recompute", HYENA | CARRIED),
        ("modal", MODAL),
        ("modal", MODAL | CARRIED),
    ],
    ids=["direct", "direct-stateful", "modal", "modal-stateful"],
)
def test_compiled_training_step(plan: str, fields: dict[str, Any], tmp_path: Path) -> None:
    operator = made(tmp_path, spec_from_dict(fields), plan)
    layer = operator.module(device="cuda")
    inputs, _ = arguments(operator, 264)

    def loss(module: Any) -> torch.Tensor:
        layer.zero_grad()
        y = module(*inputs)
        if "state" in fields:  # of two chunks
            first, state = y
            second, state = module(*inputs, state=state)
            y = torch.cat([first, second], 2)
        value: torch.Tensor = y.float().square().mean()
        value.backward()
        return value.detach()

    expected = loss(layer)
    gradients = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    found = loss(torch.compile(layer, fullgraph=True))
    torch.testing.assert_close(found, expected)
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_beyond_32_bit_offsets(tmp_path: Path) -> None:
    """More than 2^31 elements: the last channels are as right as the first."""
    spec = spec_from_dict(
        {
            "op": "gpu_long",
            "channels": 4096,
            "filter": {"kind": "explicit", "length": 4, "groups": 4096, "taps": "lag_last"},
        }
    )
    operator = made(tmp_path, spec, "direct/BDL/recompute")
    taps = torch.randn(4096, 4, device="cuda")
    x = torch.randn(1, 4096, 2**19 + 8, device="cuda", dtype=torch.bfloat16)
    y = operator(x, filter=taps)
    for part in (slice(0, 2), slice(-2, None)):
        alone = torch.nn.functional.conv1d(
            torch.nn.functional.pad(x[:, part].double(), (3, 0)),
            taps[part].double()[:, None],
            groups=2,
        )
        torch.testing.assert_close(y[:, part].double(), alone, rtol=0.01, atol=0.02)

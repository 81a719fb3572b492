"""The float64 reference against itself, torch's own convolution, and formulas worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sh2gen.base.errors import Sh2genError
from sh2gen.graph.reference import (
    decayed_filter,
    filter_taps,
    reference,
    reference_gradients,
    sample_groups,
)
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Projection, TapOrder
from sh2gen.spec.operator import OpSpec
from tests.strategies import register_profiles, shapes, specs

register_profiles()
KINDS = ("explicit", "decay", "modal", "freeform")


def make(**fields: Any) -> OpSpec:
    inner = {"kind": "explicit", "length": 4, "groups": 2}
    return spec_from_dict({"op": "probe", "channels": 6, "filter": inner} | fields)


def draw(spec: OpSpec, batch: int, length: int, seed: int = 0) -> tuple[dict[str, Tensor], ...]:
    rng = torch.Generator().manual_seed(seed)
    f64 = torch.float64
    inputs = {
        n: torch.randn(batch, spec.channels, length, generator=rng, dtype=f64) for n in spec.inputs
    }
    parameters = {p.name: torch.randn(p.shape, generator=rng, dtype=f64) for p in spec.parameters}
    if "log_poles" in parameters:
        parameters["log_poles"] = -parameters["log_poles"].abs()
    if "p" in parameters:
        parameters["p"] = parameters["p"] - 1
    return inputs, parameters


@given(st.data())
def test_fft_equals_direct_sum(data: st.DataObject) -> None:
    spec = data.draw(specs(kinds=KINDS))
    batch, length = data.draw(shapes(spec, longest=200))
    inputs, parameters = draw(spec, batch, length)
    dy = torch.randn(batch, spec.channels, length, dtype=torch.float64)
    by_fft = reference_gradients(spec, inputs, parameters, dy, method="fft")
    by_sum = reference_gradients(spec, inputs, parameters, dy, method="direct")
    torch.testing.assert_close(by_fft, by_sum, rtol=1e-10, atol=1e-10)


def test_agrees_with_torch_conv1d_and_the_formula() -> None:
    """Everything at once: featurizer, both gates, skip, bias, last lag first, thirds."""
    spec = make(
        filter={"kind": "explicit", "length": 4, "groups": 2, "taps": "lag_last"},
        featurizer={"length": 3},
        gates={"pre": True, "post": True},
        skip="channel",
        bias="ungated",
    )
    inputs, parameters = draw(spec, 2, 11)

    def conv(x: Tensor, rows: Tensor) -> Tensor:  # torch stores the last lag first
        weight = rows[:, None]
        return functional.conv1d(functional.pad(x, (rows.shape[1] - 1, 0)), weight, groups=6)

    wq, wk, wv = parameters["featurizer"].split(6)
    z = conv(inputs["k"], wk) * conv(inputs["v"], wv)
    pre = conv(z, parameters["filter"].repeat_interleave(3, 0))
    pre = pre + parameters["skip"][:, None] * z + parameters["bias"][:, None]
    expected = conv(inputs["q"], wq) * pre
    for method in ("fft", "direct"):
        torch.testing.assert_close(reference(spec, inputs, parameters, method=method), expected)


def test_causal_conv1d_signature() -> None:
    """short_conv: silu(conv + bias), channel by channel."""
    spec = make(
        filter={"kind": "explicit", "length": 4, "groups": 6, "taps": "lag_last"},
        bias="ungated",
        activation="silu",
    )
    inputs, parameters = draw(spec, 1, 9)
    h, b, x = parameters["filter"], parameters["bias"], inputs["x"]
    expected = functional.silu(
        functional.conv1d(functional.pad(x, (3, 0)), h[:, None], b, groups=6)
    )
    torch.testing.assert_close(reference(spec, inputs, parameters), expected)


def test_lag_first_by_hand() -> None:
    spec = make(channels=1, filter={"kind": "explicit", "length": 2, "groups": 1})
    x, h = torch.tensor([[[1.0, 10.0, 100.0]]]), torch.tensor([[2.0, 3.0]])
    y = reference(spec, {"x": x}, {"filter": h})
    torch.testing.assert_close(y, torch.tensor([[[2.0, 23.0, 230.0]]], dtype=torch.float64))


def test_gated_bias_is_a_channel_skip() -> None:
    gated, skip = make(bias="gated"), make(skip="channel")
    inputs, parameters = draw(gated, 1, 9)
    renamed = {"filter": parameters["filter"], "skip": parameters["bias"]}
    ours, theirs = reference(gated, inputs, parameters), reference(skip, inputs, renamed)
    torch.testing.assert_close(ours, theirs)


def test_group_skip_is_a_repeated_channel_skip() -> None:
    group, channel = make(skip="group"), make(skip="channel")
    inputs, parameters = draw(group, 1, 9)
    wide = parameters | {"skip": parameters["skip"].repeat_interleave(3)}
    torch.testing.assert_close(
        reference(group, inputs, parameters), reference(channel, inputs, wide)
    )


@given(st.data())
def test_packings_and_tap_orders_hold_the_same_operator(data: st.DataObject) -> None:
    spec = data.draw(specs(kinds=("explicit", "decay")))
    if spec.featurizer is None:
        return
    inputs, parameters = draw(spec, 1, 20)
    roles, channels = len(spec.inputs), spec.channels
    other = replace(
        spec,
        filter=replace(spec.filter, taps=_opposite(spec.filter.taps)),
        featurizer=replace(spec.featurizer, taps=_opposite(spec.featurizer.taps)),
        layout=replace(spec.layout, projection=_repacked(spec.layout.projection)),
    )
    rows = parameters["featurizer"].flip(-1)
    if spec.layout.projection is Projection.THIRDS:
        rows = rows.unflatten(0, (roles, channels)).transpose(0, 1)
    else:
        rows = rows.unflatten(0, (channels, roles)).transpose(0, 1)
    turned = parameters | {
        "filter": parameters["filter"].flip(-1),
        "featurizer": rows.flatten(0, 1),
    }
    torch.testing.assert_close(
        reference(spec, inputs, parameters), reference(other, inputs, turned)
    )


def _opposite(order: TapOrder) -> TapOrder:
    return TapOrder.LAG_LAST if order is TapOrder.LAG_FIRST else TapOrder.LAG_FIRST


def _repacked(projection: Projection) -> Projection:
    thirds = projection is Projection.THIRDS
    return Projection.INTERLEAVED if thirds else Projection.THIRDS


def test_decay_by_hand() -> None:
    """weak: rates 10^-2 ... 10^2; the ladder repeats; the lag is scaled by cache_length - 1."""
    decay = {"preset": "weak", "cache_length": 5, "repeats": 2}
    inner = {"kind": "decay", "length": 3, "groups": 6, "decay": decay}
    h = decayed_filter(make(filter=inner), torch.ones(6, 3, dtype=torch.float64))
    for group, alpha in enumerate((0.01, 1.0, 100.0) * 2):
        expected = [math.exp(-alpha * lag / 4) for lag in range(3)]
        torch.testing.assert_close(h[group], torch.tensor(expected, dtype=torch.float64))
    last = decayed_filter(
        make(filter=inner | {"taps": "lag_last"}), torch.ones(6, 3, dtype=torch.float64)
    )
    torch.testing.assert_close(last.flip(-1), h)


def test_strongest_decay_of_evo2() -> None:
    """Cached for 8192 samples, the strongest decay at tap 127 is 0.21; for 128 it is 4e-44."""
    for cache_length, expected in ((8192, 0.2120), (128, 3.7e-44)):
        decay = {"preset": "weak", "cache_length": cache_length}
        inner = {"kind": "decay", "length": 128, "groups": 2, "decay": decay}
        h = decayed_filter(make(filter=inner), torch.ones(2, 128, dtype=torch.float64))
        assert h[1, 127].item() == pytest.approx(expected, rel=0.01)


def test_modal_filter_is_the_recurrence() -> None:
    """s[t] = exp(a) s[t-1] + x[t], y[t] = sum of R s[t]; and both parametrisations agree."""
    inner = {"kind": "modal", "groups": 6, "modes": 3, "parametrisation": "p_gamma"}
    spec = make(filter=inner)
    inputs, parameters = draw(spec, 2, 12)
    poles = -(parameters["p"] + parameters["gamma"]).exp()
    state, expected = torch.zeros(2, 6, 3, dtype=torch.float64), []
    for t in range(12):
        state = poles.exp() * state + inputs["x"][..., t, None]
        expected.append((parameters["residues"] * state).sum(-1))
    folded = make(filter=inner | {"parametrisation": "log_poles"})
    others = {"log_poles": poles, "residues": parameters["residues"]}
    for got in (reference(spec, inputs, parameters), reference(folded, inputs, others)):
        torch.testing.assert_close(got, torch.stack(expected, -1))


def test_pairs_are_recurrences_of_complex_numbers() -> None:
    """s[t] = exp(a) s[t-1] + x[t], y[t] = sum of R s[t] and of its conjugate."""
    inner = {"kind": "modal", "groups": 6, "modes": 3, "parametrisation": "complex"}
    spec = make(filter=inner)
    inputs, parameters = draw(spec, 2, 12)
    poles = torch.complex(parameters["log_poles"], parameters["frequencies"])
    residues = torch.complex(parameters["residues_real"], parameters["residues_imag"])
    state, expected = torch.zeros(2, 6, 3, dtype=torch.complex128), []
    for t in range(12):
        state = poles.exp() * state + inputs["x"][..., t, None]
        term = (residues * state).sum(-1)
        expected.append((term + term.conj()).real)
    got = reference(spec, inputs, parameters)
    torch.testing.assert_close(got, torch.stack(expected, -1))


def test_absolute_of_pairs_does_not_grow_with_frequencies() -> None:
    """An angle acts modulo a turn: no excuse for errors of many turns. An e-fold in 100 steps."""
    spec = make(filter={"kind": "modal", "groups": 6, "modes": 1, "parametrisation": "complex"})
    ones = torch.ones(6, 1, dtype=torch.float64)
    parameters = {"log_poles": -0.01 * ones, "residues_real": ones, "residues_imag": ones}
    slow, fast = (
        filter_taps(spec, parameters | {"frequencies": f * ones}, 101, absolute=True)
        for f in (0.25, 1e4)
    )
    torch.testing.assert_close(fast, slow)
    expected = 4 * math.exp(-1) * (1 + (1 + 25) / 8)
    assert slow[:, 100].tolist() == pytest.approx([expected] * 6)


def test_freeform_filter_may_be_shorter() -> None:
    spec = make(filter={"kind": "freeform", "length": 100, "groups": 2})
    inputs, _ = draw(spec, 1, 30)
    short = torch.randn(2, 7, dtype=torch.float64)
    padded = functional.pad(short, (0, 93))
    torch.testing.assert_close(
        reference(spec, inputs, {"filter": short}), reference(spec, inputs, {"filter": padded})
    )


@given(st.data())
def test_absolute_bounds_every_value_and_gradient(data: st.DataObject) -> None:
    spec = data.draw(specs(kinds=KINDS))
    inputs, parameters = draw(spec, 2, 17)
    dy = torch.randn(2, spec.channels, 17, dtype=torch.float64)
    y, grads = reference_gradients(spec, inputs, parameters, dy, method="direct")
    bound, bounds = reference_gradients(
        spec, inputs, parameters, dy, method="direct", absolute=True
    )
    assert (y.abs() <= bound * (1 + 1e-12)).all()
    for name, grad in grads.items():
        assert (grad.abs() <= bounds[name] * (1 + 1e-12)).all(), name


@given(st.data())
def test_absolute_bounds_gradients_at_zeros(data: st.DataObject) -> None:
    """A gradient by an input or parameter that is exactly zero has terms like any other."""
    spec = data.draw(specs(kinds=KINDS))
    inputs, parameters = draw(spec, 1, 12)
    kept = {
        "p",
        "gamma",
        "log_poles",
        "frequencies",
    }  # a residue of zero leaves a pole without gradient
    parameters = {n: p if n in kept else p * (p > 0) for n, p in parameters.items()}
    inputs = {n: x * (x > 0) for n, x in inputs.items()}
    dy = torch.ones(1, spec.channels, 12)
    _, grads = reference_gradients(spec, inputs, parameters, dy, method="direct")
    _, bounds = reference_gradients(spec, inputs, parameters, dy, method="direct", absolute=True)
    for name, grad in grads.items():
        assert (grad.abs() <= bounds[name] * (1 + 1e-12)).all(), name


def test_absolute_is_reached_without_cancellation() -> None:
    spec = make(featurizer={"length": 2}, gates={"pre": True, "post": True}, skip="group")
    inputs, parameters = draw(spec, 1, 9)
    positive = [{n: t.abs() for n, t in group.items()} for group in (inputs, parameters)]
    torch.testing.assert_close(
        reference(spec, *positive), reference(spec, inputs, parameters, absolute=True)
    )


@given(st.data())
def test_sampled_groups_are_a_part_of_the_whole(data: st.DataObject) -> None:
    spec = data.draw(specs(kinds=KINDS, max_groups=4))
    chosen = data.draw(
        st.lists(st.integers(0, spec.filter.groups - 1), min_size=1, max_size=3, unique=True)
    )
    inputs, parameters = draw(spec, 2, 19)
    dy = torch.randn(2, spec.channels, 19, dtype=torch.float64)
    y, grads = reference_gradients(spec, inputs, parameters, dy)
    expected = sample_groups(spec, {"y": y} | grads, chosen)
    part = {"dy": dy} | inputs | parameters
    part = sample_groups(spec, part, chosen)
    got_y, got = reference_gradients(
        spec,
        {n: part[n] for n in inputs},
        {n: part[n] for n in parameters},
        part["dy"],
        groups=chosen,
    )
    torch.testing.assert_close({"y": got_y} | got, expected)


@given(st.data())
def test_left_context_continues_a_sequence(data: st.DataObject) -> None:
    spec = data.draw(specs(kinds=("explicit", "freeform")))
    inputs, parameters = draw(spec, 1, 40)
    whole = reference(spec, inputs, parameters)
    past = {n: x[..., :23] for n, x in inputs.items()}
    rest = {n: x[..., 23:] for n, x in inputs.items()}
    split = reference(spec, rest, parameters, left_context=past)
    torch.testing.assert_close(split, whole[..., 23:])


@pytest.mark.parametrize("parametrisation", ["p_gamma", "complex"])
def test_gradients_match_finite_differences(parametrisation: str) -> None:
    spec = make(
        channels=2,
        filter={"kind": "modal", "groups": 2, "modes": 2, "parametrisation": parametrisation},
        featurizer={"length": 2},
        gates={"pre": True, "post": True},
        skip="channel",
    )
    inputs, parameters = draw(spec, 1, 5)
    names = [*inputs, *parameters]
    tensors = [t.requires_grad_() for t in (*inputs.values(), *parameters.values())]

    def function(*values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        return reference(spec, {n: named[n] for n in inputs}, {n: named[n] for n in parameters})

    assert torch.autograd.gradcheck(function, tensors)


def test_taps_beyond_the_sequence_do_not_matter() -> None:
    spec = make()
    _, parameters = draw(spec, 1, 2)
    assert filter_taps(spec, parameters, 2).shape == (2, 2)


@pytest.mark.parametrize(
    ("inputs", "parameters"),
    [
        ({"x": (1, 5, 8)}, {"filter": (2, 4)}),
        ({"x": (6, 8)}, {"filter": (2, 4)}),
        ({"v": (1, 6, 8)}, {"filter": (2, 4)}),
        ({"x": (1, 6, 8)}, {"filter": (1, 4)}),
        ({"x": (1, 6, 8)}, {}),
        ({"x": (1, 6, 0)}, {"filter": (2, 4)}),
    ],
)
def test_refuses_what_would_broadcast(
    inputs: dict[str, tuple[int, ...]], parameters: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(Sh2genError, match="C001"):
        reference(
            make(),
            {n: torch.zeros(s) for n, s in inputs.items()},
            {n: torch.zeros(s) for n, s in parameters.items()},
        )

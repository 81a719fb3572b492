"""The operator language: what is read, what is derived, and that nothing bad gets through."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sh2gen.base.errors import Sh2genError
from sh2gen.base.resources import folder
from sh2gen.spec.decode import load_spec, parse_spec, spec_from_dict
from sh2gen.spec.language import (
    Activation,
    Activations,
    Bias,
    ContextSpec,
    DecayPreset,
    DecaySpec,
    DType,
    Exchange,
    FeaturizerSpec,
    FilterKind,
    FilterSpec,
    GateSpec,
    LayoutSpec,
    Parametrisation,
    Precision,
    Projection,
    Sequences,
    Sharding,
    Skip,
    StateSpec,
    StateWidth,
    TapOrder,
    Workload,
)
from sh2gen.spec.operator import OpSpec

OPS = Path(__file__).parents[2] / "ops"
SMALL = "op: my_conv\nchannels: 64\nfilter: {kind: explicit, length: 7, groups: 8}\n"
EVERYTHING = """\
op: hyena_mr
channels: 4096
filter:
  kind: decay
  length: 128
  groups: 256
  decay: {preset: weak, cache_length: 8192, repeats: 2}
  taps: lag_first
featurizer: {length: 3, taps: lag_first}
gates: {pre: true, post: true}
skip: channel
bias: none
activation: none
precision: balanced
dtype: {io: fp16, accumulate: fp32}
layout: {activations: BDL, projection: interleaved}
state: {initial: true, final: true, width: K, dtype: float32}
sequences: packed
context: {ranks: 8, sharding: contiguous, exchange: halo_overlapped}
workloads: [{batch: 1, length: 8192}, {batch: 2, length: 131072}]
"""


def shapes(spec: OpSpec) -> dict[str, tuple[int, ...]]:
    return {parameter.name: parameter.shape for parameter in spec.parameters}


def small(**changes: Any) -> OpSpec:
    return dataclasses.replace(parse_spec(SMALL), **changes)


# ---- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(OPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_operators(path: Path) -> None:
    spec = load_spec(path)
    assert path.stem == spec.op or path.stem.startswith(f"{spec.op}_")  # a width of it
    assert spec.source == str(path)
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_shipped_shapes() -> None:
    assert shapes(load_spec(OPS / "hyena_se.yaml")) == {
        "filter": (256, 7),
        "featurizer": (3 * 4096, 3),
    }
    assert load_spec(OPS / "hyena_se_1b.yaml").group_width == 15
    assert load_spec(OPS / "hyena_se_40b.yaml").group_width == 16
    assert shapes(load_spec(OPS / "short_conv.yaml")) == {"filter": (4096, 4), "bias": (4096,)}
    assert load_spec(OPS / "short_conv.yaml").inputs == ("x",)


def test_every_field() -> None:
    assert parse_spec(EVERYTHING) == OpSpec(
        op="hyena_mr",
        channels=4096,
        filter=FilterSpec(
            kind=FilterKind.DECAY,
            length=128,
            groups=256,
            decay=DecaySpec(preset=DecayPreset.WEAK, cache_length=8192, repeats=2),
            taps=TapOrder.LAG_FIRST,
        ),
        featurizer=FeaturizerSpec(length=3, taps=TapOrder.LAG_FIRST),
        gates=GateSpec(pre=True, post=True),
        skip=Skip.CHANNEL,
        bias=Bias.NONE,
        activation=Activation.NONE,
        precision=Precision.BALANCED,
        dtype=dataclasses.replace(parse_spec(SMALL).dtype, io=DType.FLOAT16),
        layout=LayoutSpec(activations=Activations.BDL, projection=Projection.INTERLEAVED),
        state=StateSpec(initial=True, final=True, width=StateWidth.K),
        sequences=Sequences.PACKED,
        context=ContextSpec(
            ranks=8, sharding=Sharding.CONTIGUOUS, exchange=Exchange.HALO_OVERLAPPED
        ),
        workloads=(Workload(batch=1, length=8192), Workload(batch=2, length=131072)),
    )


def test_defaults() -> None:
    spec = parse_spec(SMALL)
    assert spec.filter.taps is TapOrder.LAG_FIRST
    assert spec.featurizer is None and spec.state is None and spec.context is None
    assert spec.dtype.io is DType.BFLOAT16
    assert spec.workloads == (Workload(batch=1, length=8192),)
    assert parse_spec(SMALL + "featurizer: {length: 3}\n").featurizer == FeaturizerSpec(
        length=3, taps=TapOrder.LAG_LAST
    )


@pytest.mark.parametrize("parametrisation", list(Parametrisation))
def test_modal(parametrisation: Parametrisation) -> None:
    text = f"{{kind: modal, groups: 64, modes: 16, parametrisation: {parametrisation}}}"
    spec = parse_spec(f"op: li\nchannels: 64\nfilter: {text}\nskip: channel\n")
    assert spec.filter.length is None
    names = {
        Parametrisation.P_GAMMA: ("p", "gamma", "residues"),
        Parametrisation.LOG_POLES: ("log_poles", "residues"),
        Parametrisation.COMPLEX: ("log_poles", "frequencies", "residues_real", "residues_imag"),
    }[parametrisation]
    assert shapes(spec) == dict.fromkeys(names, (64, 16)) | {"skip": (64,)}
    pairs = parametrisation is Parametrisation.COMPLEX
    assert spec.filter.pairs == pairs and spec.filter.state_size == (32 if pairs else 16)


def test_freeform() -> None:
    spec = parse_spec(SMALL.replace("explicit", "freeform").replace("length: 7", "length: 8192"))
    assert shapes(spec) == {"filter": (8, 8192)}


@pytest.mark.parametrize(("short", "dtype"), [("bf16", "bfloat16"), ("fp32", "float32")])
def test_short_dtype_names(short: str, dtype: str) -> None:
    assert parse_spec(f"{SMALL}dtype: {{io: {short}}}\n").dtype.io == dtype


def test_quotes_byte_order_marks_and_line_ends_do_not_matter() -> None:
    spec = parse_spec(SMALL)
    assert parse_spec(SMALL.replace("my_conv", '"my_conv"')) == spec
    assert parse_spec("\ufeff" + SMALL) == spec
    assert parse_spec(SMALL.replace("\n", "\r\n")) == spec
    assert parse_spec(json.dumps(spec.to_dict())) == spec


# ---- derived values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pre", "post", "inputs"),
    [
        (True, True, ("q", "k", "v")),
        (True, False, ("k", "v")),
        (False, True, ("q", "v")),
        (False, False, ("x",)),
    ],
)
def test_inputs(pre: bool, post: bool, inputs: tuple[str, ...]) -> None:
    spec = small(gates=GateSpec(pre=pre, post=post), featurizer=FeaturizerSpec(length=3))
    assert spec.inputs == inputs
    assert shapes(spec)["featurizer"] == (len(inputs) * 64, 3)


def test_parameters_and_their_order() -> None:
    spec = small(skip=Skip.GROUP, bias=Bias.UNGATED, featurizer=FeaturizerSpec(length=3))
    assert list(shapes(spec).items()) == [
        ("filter", (8, 7)),
        ("featurizer", (64, 3)),
        ("skip", (8,)),
        ("bias", (64,)),
    ]


def test_initial_values_can_be_run() -> None:
    torch = pytest.importorskip("torch")
    modal = FilterSpec(
        kind=FilterKind.MODAL, groups=64, modes=16, parametrisation=Parametrisation.P_GAMMA
    )
    poles = dataclasses.replace(modal, parametrisation=Parametrisation.LOG_POLES)
    pairs = dataclasses.replace(modal, parametrisation=Parametrisation.COMPLEX)
    filters = (modal, poles, pairs)
    for spec in (parse_spec(EVERYTHING), *(small(filter=inner) for inner in filters)):
        for parameter in spec.parameters:
            tensor = torch.empty(parameter.shape)
            for method, arguments in re.findall(r"(\w+)\(([^)]*)\)", parameter.init):
                getattr(tensor, method)(*map(float, filter(None, arguments.split(","))))
            assert torch.isfinite(tensor).all()
            if parameter.name == "log_poles":
                assert tensor.min() > -0.0368 and tensor.max() < -0.0036
            if parameter.name == "frequencies":
                assert tensor.min() >= 0 and 3 < tensor.max() <= 3.14159274


def test_decay_exponents() -> None:
    assert DecayPreset.WEAK.exponents == (-2, 2)
    assert DecayPreset.NORMAL.exponents == (-1, 2)
    assert DecayPreset.STRONG.exponents == (0, 2)


def test_digest_sees_meaning_only() -> None:
    spec = parse_spec(SMALL)
    reordered = "# a comment\nskip: none\n" + "\n".join(reversed(SMALL.splitlines())) + "\n"
    workloads = SMALL + "workloads: [{batch: 4, length: 17}]\n"
    for same in (reordered, workloads, SMALL + "dtype: {io: bf16}\n", spec.to_yaml()):
        assert parse_spec(same).digest == spec.digest
    for other in (small(skip=Skip.CHANNEL), small(op="other"), small(channels=128)):
        assert other.digest != spec.digest
    assert len(spec.digest) == 64


def test_source_is_no_part_of_the_value() -> None:
    spec = parse_spec(SMALL)
    moved = dataclasses.replace(spec, source="elsewhere.yaml")
    assert moved == spec and hash(moved) == hash(spec) and moved.digest == spec.digest
    assert "source" not in spec.to_dict()


def test_specs_pickle() -> None:
    spec = parse_spec(EVERYTHING)
    assert pickle.loads(pickle.dumps(spec)) == spec


# ---- any operator -------------------------------------------------------------------------------

SIZES = st.integers(1, 300)


@st.composite
def specs(draw: st.DrawFn) -> OpSpec:
    """Any legal operator."""
    groups = draw(SIZES)
    kind = draw(st.sampled_from(FilterKind))
    length = draw(SIZES)
    modal = kind is FilterKind.MODAL
    decay = DecaySpec(preset=draw(st.sampled_from(DecayPreset)), cache_length=length + draw(SIZES))
    inner = FilterSpec(
        kind=kind,
        length=None if modal else length,
        groups=groups,
        taps=TapOrder.LAG_FIRST if modal else draw(st.sampled_from(TapOrder)),
        decay=decay if kind is FilterKind.DECAY else None,
        modes=draw(SIZES) if modal else None,
        parametrisation=draw(st.sampled_from(Parametrisation)) if modal else None,
    )
    gates = GateSpec(pre=draw(st.booleans()), post=draw(st.booleans()))
    plain = not (gates.pre or gates.post)
    skip = draw(st.sampled_from(Skip))
    biases = [bias for bias in Bias if skip is Skip.NONE or bias is not Bias.GATED]
    context = ContextSpec(ranks=draw(SIZES), sharding=draw(st.sampled_from(Sharding)))
    context = draw(st.none() | st.just(context))
    width = draw(st.sampled_from(StateWidth))
    state = StateSpec(initial=context is not None, final=True, width=width)
    return OpSpec(
        op=draw(st.from_regex(r"[a-z][a-z0-9]{0,8}_[a-z0-9_]{0,50}", fullmatch=True)),
        channels=groups * draw(SIZES),
        filter=inner,
        featurizer=draw(st.none() | st.builds(FeaturizerSpec, length=SIZES)),
        gates=gates,
        skip=skip,
        bias=draw(st.sampled_from(biases)),
        activation=draw(st.sampled_from(Activation)) if plain else Activation.NONE,
        precision=draw(st.sampled_from(Precision)),
        layout=draw(st.builds(LayoutSpec)),
        state=draw(st.none() | st.just(state)),
        sequences=draw(st.sampled_from(Sequences)),
        context=context,
        workloads=draw(
            st.lists(st.builds(Workload, batch=SIZES, length=SIZES), min_size=1, max_size=3).map(
                tuple
            )
        ),
    )


@settings(max_examples=60, deadline=None)
@given(specs())
def test_round_trips(spec: OpSpec) -> None:
    assert parse_spec(spec.to_yaml()) == spec
    assert spec_from_dict(spec.to_dict()) == spec
    assert spec_from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert parse_spec(spec.to_yaml()).digest == spec.digest


# ---- refusals (the texts themselves: tests/errors) ----------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.integers(0, len(EVERYTHING)), st.integers(0, 30))
def test_any_text_is_an_operator_or_one_clear_error(insert: str, start: int, cut: int) -> None:
    for text in (insert, EVERYTHING[:start] + insert + EVERYTHING[start + cut :]):
        try:
            spec = parse_spec(text)
        except Sh2genError as error:
            assert error.code.startswith("S")
            assert error.render().startswith("error[S")
        else:
            assert spec.op.isidentifier()


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["op", "filter", "length", "x"]), inner, max_size=3)
        ),
    )
)
def test_any_dict_is_an_operator_or_one_clear_error(values: Any) -> None:
    with pytest.raises(Sh2genError):
        spec_from_dict(values)
    for key in ("channels", "filter", "gates", "workloads"):
        with pytest.raises(Sh2genError):
            spec_from_dict(parse_spec(SMALL).to_dict() | {key: values if values else None})


@pytest.mark.parametrize("values", [{"op": object()}, {("a",): 1}, {"op": {1, 2}}])
def test_a_dict_of_objects_is_refused(values: dict[Any, Any]) -> None:
    with pytest.raises(Sh2genError):
        spec_from_dict(values)


def test_a_cyclic_dict_is_refused() -> None:
    values: dict[str, Any] = {}
    values["op"] = values
    with pytest.raises(Sh2genError):
        spec_from_dict(values)


def test_replace_checks_too() -> None:
    with pytest.raises(Sh2genError, match="groups do not divide") as caught:
        small(channels=63)
    assert caught.value.location is None
    assert caught.value.exit_code == 2


def test_rule_errors_pickle() -> None:
    with pytest.raises(Sh2genError) as caught:
        parse_spec(SMALL.replace("groups: 8", "groups: 7"))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.render() == caught.value.render()


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "hyena_se.yaml").write_text(SMALL)
    for name in ("hyena_es.yaml", "hyena_se"):
        with pytest.raises(Sh2genError, match="no such file") as caught:
            load_spec(tmp_path / name)
        assert caught.value.help == f"did you mean `{tmp_path / 'hyena_se.yaml'}`?"


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(Sh2genError, match="is a directory"):
        load_spec(tmp_path)
    with pytest.raises(Sh2genError, match="no such file"):
        load_spec(tmp_path / "missing" / "op.yaml")
    with pytest.raises(Sh2genError, match="null byte"):
        load_spec("a\0b")
    os.mkfifo(tmp_path / "pipe.yaml")  # nobody writes into it
    (tmp_path / "pipes.yaml").write_text("")
    for path in ("/dev/zero", tmp_path / "pipe.yaml"):
        with pytest.raises(Sh2genError, match="it is not a regular file") as caught:
            load_spec(path)
        assert caught.value.help is None
    for name in ("n" * 300, "n" * 5000, "n" * 300 + "/op.yaml"):
        with pytest.raises(Sh2genError, match="name too long"):
            load_spec(tmp_path / name)
    with pytest.raises(Sh2genError, match=r"is Python.*wanted here") as caught:
        load_spec("generated/hyena_se.py")
    assert "`sh2gen verify`" in str(caught.value.help)


def test_a_shipped_operator_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which says the same wherever one is, and whatever is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hyena_se").mkdir()
    (tmp_path / "mr.yaml").write_text("")
    assert load_spec("hyena_se") == load_spec(folder("ops") / "hyena_se.yaml")
    for name, help in (
        ("hyena_sf", "did you mean `hyena_se`?"),
        ("hyena_sf.yaml", "did you mean `hyena_se`?"),
        ("hyena_mr.yaml", "did you mean `hyena_mr`?"),
        ("nonsense", "`sh2gen ops` lists the shipped operators"),
    ):
        with pytest.raises(Sh2genError, match="no such file") as caught:
            load_spec(name)
        assert caught.value.help == help
    with pytest.raises(Sh2genError, match="is a directory"):
        load_spec("./hyena_se")
    (tmp_path / "hyena_se" / "mine.yaml").write_text("")
    with pytest.raises(Sh2genError, match="is a directory") as caught:
        load_spec("./hyena_se")
    assert caught.value.help == "one of mine.yaml in it"


def test_large_files_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "op.yaml"
    path.write_text(SMALL + "#" * 200_000)
    with pytest.raises(Sh2genError, match="larger than"):
        load_spec(path)

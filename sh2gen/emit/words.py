"""An operator in words: for the docstrings of its generated file."""

from __future__ import annotations

from sh2gen.spec.language import Bias, FilterKind, Projection, Skip, TapOrder
from sh2gen.spec.operator import OpSpec


def class_name(op: str) -> str:
    """hyena_se -> HyenaSe."""
    return "".join(part.capitalize() for part in op.split("_")) or "Operator"


def summary(spec: OpSpec) -> str:
    inner = f"{spec.filter.length}-tap {spec.filter.kind.value} causal convolution"
    if spec.filter.kind is FilterKind.MODAL:
        of = "pairs of complex exponentials" if spec.filter.pairs else "exponentials"
        inner = f"causal convolution with sums of {spec.filter.modes} {of}"
    words = [
        inner,
        "filters of groups of channels" if spec.group_width > 1 else "",
    ]
    if spec.featurizer:
        words.append(f"featurizer of {spec.featurizer.length} taps")
    gates = [name for name, on in (("pre", spec.gates.pre), ("post", spec.gates.post)) if on]
    words.append(f"{' and '.join(gates)} gate{'s' if len(gates) > 1 else ''}" if gates else "")
    words.append(spec.activation.value if spec.activation.value != "none" else "")
    return ", ".join(word for word in words if word)


def formula(spec: OpSpec) -> str:
    """What is computed, with * for causal convolution along time and . for products."""

    def f(name: str) -> str:
        return f"(featurizer * {name})" if spec.featurizer else name

    value = f(spec.inputs[-1])
    z = f"{f('k')} . {value}" if spec.gates.pre else value
    terms = ["filter * z"]
    terms += ["skip . z"] if spec.skip is not Skip.NONE else []
    terms += {Bias.NONE: [], Bias.UNGATED: ["bias"], Bias.GATED: ["bias . z"]}[spec.bias]
    pre = " + ".join(terms)
    if spec.gates.post:
        y = f"{f('q')} . ({pre})"  # * and . have no precedence here: brackets always
    else:
        y = f"silu({pre})" if spec.activation.value == "silu" else pre
    return f"z = {z}\ny = {y}"


def filter_size(spec: OpSpec) -> str:
    if spec.filter.kind is FilterKind.MODAL:
        return f"N = {spec.filter.modes} {'pairs of modes' if spec.filter.pairs else 'modes'}"
    return f"K = {spec.filter.length} taps"


def packing(spec: OpSpec) -> str:
    names = ", ".join(spec.inputs)
    if spec.layout.projection is Projection.INTERLEAVED:
        return f"channel d holds {names} at {len(spec.inputs)} d, {len(spec.inputs)} d + 1, ..."
    return f"blocks of D channels, {names} in this order"


def meaning(spec: OpSpec, name: str) -> str:
    match name:
        case "filter":
            order = "tap 0" if spec.filter.taps is TapOrder.LAG_FIRST else "the last tap"
            decay = ", before its decay" if spec.filter.kind is FilterKind.DECAY else ""
            return f"{order} multiplies the current sample{decay}"
        case "p" | "gamma":
            return "log-poles a are -exp(p) exp(gamma)"
        case "log_poles" if spec.filter.pairs:
            return "real parts of a, < 0: pair n of the filter at lag j is 2 Re R[n] exp(a[n] j)"
        case "frequencies":
            return "imaginary parts of a: radians a step"
        case "residues_real" | "residues_imag":
            return f"{'real' if name == 'residues_real' else 'imaginary'} parts of residues R"
        case "log_poles":
            return "a < 0: mode n of the filter at lag j is residues[n] exp(a[n] j)"
        case "residues":
            return "weights of the modes"
        case "featurizer":
            assert spec.featurizer is not None
            order = "tap 0" if spec.featurizer.taps is TapOrder.LAG_FIRST else "the last tap"
            return f"{order} multiplies the current sample; {packing(spec)}"
        case "skip":
            return "times z, added to the convolution"
        case _:
            return "times z, added" if spec.bias is Bias.GATED else "added to the convolution"

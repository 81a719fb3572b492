"""From a plan and a schedule to one readable Python file.

`emit` is a fold over tile programs (for kernels) and over graphs (for plain PyTorch): each
statement prints as one line that calls a helper. Helpers are real functions in `templates/parts/`,
copied verbatim when used; skeletons are Jinja files that never look into a tile program.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import keyword
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import jinja2

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import signed
from sh2gen.base.resources import folder
from sh2gen.emit import reduce as emit_reduce
from sh2gen.emit.eager import (
    eager_backward,
    eager_forward,
    eager_helper_names,
    eager_stateful,
    featurizer_lag,
    history_steps,
    op_parameters,
    targets,
)
from sh2gen.emit.fit import fitted
from sh2gen.emit.kernels import cuts, kernel_numbers, kernel_sources, programs
from sh2gen.emit.sm90 import helper_names, phased_kernel
from sh2gen.emit.statements import carried, together
from sh2gen.emit.statements import helpers as helpers_of
from sh2gen.emit.statements import lines as statement_lines
from sh2gen.graph.nodes import Modes
from sh2gen.plan.modes import (
    Parts,
)
from sh2gen.plan.plan import EagerConv, KernelPlan, Plan
from sh2gen.plan.source import Source
from sh2gen.plan.statements import (
    Statement,
)
from sh2gen.plan.values import Layout, Rows, Scope, row_of
from sh2gen.schedule.config import DIRECTIONS, Schedule
from sh2gen.schedule.config import schedule as default_schedule
from sh2gen.schedule.facts import tap_terms
from sh2gen.spec.language import (
    Bias,
    FilterKind,
    Parametrisation,
    Precision,
    Projection,
    Skip,
    TapOrder,
)
from sh2gen.spec.operator import OpSpec

_SUFFIXES = (
    "forward",
    "backward",
    "packed",
)  # of the kernels and functions named after an operator


def emit(spec: OpSpec, plan: Plan, schedule: Schedule) -> Source:
    """The generated file of one plan under one schedule, and how to compile its kernels.

    Example: `emit(spec, plan, schedule(spec, plan)).text`

    Raises:
        Sh2genError: S007 if the operator's name means something else in its file.
    """
    assert schedule.plan == plan.name
    if not cuts(spec, schedule):
        plan = dataclasses.replace(plan, sums=())
    refuse_clash(spec, plan, schedule)
    text = signed(_render(spec, plan, schedule))
    return Source(op=spec.op, text=text, kernels=kernel_sources(spec, plan, schedule))


@dataclass(frozen=True, slots=True)
class _File:
    """A generated file, as far as its names go: numbers decide only whether it has a twin for
    sm_90.
    """

    spec: OpSpec
    plan: Plan
    twin: bool
    schedule: Schedule = field(compare=False)


@lru_cache(maxsize=64)  # a search writes hundreds of files of one kind
def _names(file: _File) -> frozenset[str]:
    """Every name that means something in a file."""
    taken = set(keyword.kwlist)
    for node in ast.walk(ast.parse(_render(file.spec, file.plan, file.schedule))):
        match node:
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                taken.add(name)
            case ast.arg(arg=name) | ast.alias(name=name):
                taken.add(name.split(".")[0])
    return frozenset(taken)


def refuse_clash(spec: OpSpec, plan: Plan, schedule: Schedule) -> None:
    """The names that a file takes from its operator must not stand for anything else in it: S007.

    Numbers decide only whether the file has a twin for sm_90.
    """
    neutral = dataclasses.replace(spec, op="operator_by_no_other_name")
    taken = _names(_File(neutral, plan, _twin(plan, schedule) is not None, schedule))
    own = (spec.op, class_name(spec.op), *(f"{spec.op}_{n}" for n in _SUFFIXES))
    for name in own:
        if name in taken:
            raise Sh2genError(
                "S007",
                f"`{spec.op}` cannot name an operator: `{name}` has a meaning in its file",
                help=f"try `{spec.op}_conv`",
            )


def _render(spec: OpSpec, plan: Plan, schedule: Schedule) -> str:
    n = len(spec.inputs)
    interleaved = spec.layout.projection is Projection.INTERLEAVED and n > 1
    bdl = plan.layout is Layout.BDL
    shape = "(B, D, L)" if bdl else "(B, L, D)"
    saved = [*plan.saved, *(["states"] if plan.states else [])]
    enters = spec.state is not None and spec.state.initial
    leaves = spec.state is not None and spec.state.final
    kernels = [_kernel(spec, plan, kernel) for kernel in (*plan.kernels, *plan.sums)]
    twin = _twin(plan, schedule)
    if twin is not None:
        kernels.append(_phased_kernel(spec, plan, twin))
    context: dict[str, Any] = {
        "op": spec.op,
        "class_name": class_name(spec.op),
        "library_name": f"{spec.op}_{_digest(spec, plan, schedule)}",
        "summary": _summary(spec),
        "formula": textwrap.indent(_formula(spec), "    "),
        "formula_line": f"{spec.op}: {_summary(spec)}",
        "plan": plan.name,
        "layout": plan.layout.value,
        "shape": shape,
        "packed_shape": shape.replace("D", f"{n} D"),
        "packs": n > 1,
        "packing_doc": _packing(spec),
        "channels": spec.channels,
        "groups": spec.filter.groups,
        "taps": spec.filter.length,
        "filter_size": _filter_size(spec),
        "width": spec.group_width,
        "inputs": list(spec.inputs),
        "inputs_literal": _literal(spec.inputs, 0),
        "parameter_names": [p.name for p in spec.parameters],
        "op_parameters": op_parameters(spec),
        "typed_parameters": [f"{p.name}: Tensor" for p in spec.parameters],
        "conversions": _conversions(spec),
        "computes": _computes(spec),
        "effective": lambda x: _effective(spec, x),
        "taps_names": _literal(tuple(_taps(spec)), 0),
        "parameters_literal": _literal({p.name: p.shape for p in spec.parameters}, 0, 13),
        "argument_docs": [(name, f"{shape}, bfloat16, float16 or float32") for name in spec.inputs]
        + [(p.name, f"{p.shape}, float32; {_meaning(spec, p.name)}") for p in spec.parameters],
        "parameter_docs": [f"{p.name} {p.shape}" for p in spec.parameters],
        "inits": [(p.name, p.init) for p in spec.parameters],
        "time_axis": 2 if bdl else 1,
        "channel_axis": 1 if bdl else 2,
        "spec_literal": _literal(spec.to_dict(), 0),
        "uses_decay": spec.filter.kind is FilterKind.DECAY,
        "uses_p_gamma": spec.filter.parametrisation is Parametrisation.P_GAMMA,
        "saved": saved,
        "states": plan.states,
        "modes": spec.filter.state_size,
        "modes_shape": f"{spec.filter.modes}{', 2' * spec.filter.pairs}",
        "pairs": spec.filter.pairs,
        "lag": featurizer_lag(spec),
        "featurizer_last": bool(spec.featurizer and spec.featurizer.taps is TapOrder.LAG_LAST),
        "saved_activations": list(plan.saved),
        "tile_sums": {kernel.direction: kernel.program for kernel in plan.sums},
        "keep_argument": ["keep: bool"] if plan.states else [],
        "op_arguments": [f"{spec.inputs[0]}: Tensor"]
        + [f"{name}: Tensor | None" for name in spec.inputs[1:]]
        + [f"{name}: Tensor" for name in op_parameters(spec)],
        "saved_arguments": [f"{name}: Tensor" for name in saved],
        "op_result": f"tuple[{', '.join(['Tensor'] * (1 + len(saved)))}]" if saved else "Tensor",
        "result_of": lambda call: f"tuple({call})" if saved else f"{call}[0]",
        "kernels": kernels,
        "eager": [eager_forward(spec, plan), eager_backward(spec, plan)]
        + ([eager_stateful(spec, plan)] if spec.state and plan.states else []),
        "eager_helpers": _closure(
            ("eager_pairs", "eager") if spec.filter.pairs else ("eager",),
            eager_helper_names(plan, stateful=bool(spec.state)),
        ),
        "op_helpers": _op_helpers(spec, fixed_length=plan.eager is not EagerConv.DIRECT),
        "fixed_length": plan.eager is not EagerConv.DIRECT,
        "stateful": spec.state is not None,
        "enters": enters,
        "leaves": leaves,
        "state_argument": f", state: {class_name(spec.op)}State | None = None" if enters else "",
        "result_type": f"tuple[Tensor, {class_name(spec.op)}State]" if leaves else "Tensor",
        "history_shape": shape.replace("D", f"{n} D").replace("L", str(history_steps(spec))),
        "history": history_steps(spec),
        "state_helpers": [
            f.text for f in _part("state") if not (plan.states and f.name == "join_history")
        ],
    }
    context["interleaved"] = interleaved
    if spec.filter.decay is not None:
        context["taps_last"] = spec.filter.taps is TapOrder.LAG_LAST
        context["decay"] = {
            "bounds": spec.filter.decay.preset.exponents,
            "repeats": spec.filter.decay.repeats,
            "cache_length": spec.filter.decay.cache_length,
            "groups": spec.filter.groups,
        }
    if plan.kernels:
        context |= _launch_context(spec, plan, schedule)
    text = _environment().get_template("module.py.j2").render(context)
    return fitted(text.replace(f"{_NOTHING}\n", ""))


def class_name(op: str) -> str:
    """hyena_se -> HyenaSe."""
    return "".join(part.capitalize() for part in op.split("_")) or "Operator"


def _literal(value: Any, indent: int, taken: int = 10) -> str:
    """Plain data as Python text: on one line where it fits in 99 columns, else an item a line."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if not isinstance(value, dict | list | tuple) or not value:
        return repr(value)
    inner = indent + 4
    if isinstance(value, dict):
        brackets = "{}"
        items = [
            f"{_literal(k, 0)}: {_literal(v, inner, inner + len(k) + 5)}" for k, v in value.items()
        ]
    else:
        brackets = "[]" if isinstance(value, list) else "()"
        items = [_literal(v, inner, inner + 1) for v in value]
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    line = brackets[0] + ", ".join(items) + comma + brackets[1]
    if "\n" not in line and taken + len(line) <= 99:
        return line
    lines = "".join(f"{' ' * inner}{item},\n" for item in items)
    return f"{brackets[0]}\n{lines}{' ' * indent}{brackets[1]}"


def _digest(spec: OpSpec, plan: Plan, schedule: Schedule) -> str:
    """Names the library ops, so that two files for one operator can be loaded side by side."""
    skeletons = [
        (folder("templates") / name).read_text()
        for name in ("module.py.j2", *(f"{k.skeleton}.py.j2" for k in plan.kernels))
    ]
    helpers = [f.text for kernel in plan.kernels for part in kernel.parts for f in _part(part)]
    texts = (spec.digest, plan.name, str(schedule), *skeletons, *helpers)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]


def kernel_digest(spec: OpSpec, plan: Plan) -> str:
    """Of the kernels of a plan and of how they are launched, without comments, names of operators,
    numbers and the number of channels: times of other text say little.

    Kernels for spans count whether or not a schedule cuts a sequence into these.
    """
    neutral = dataclasses.replace(spec, op="op")
    tree = ast.parse(_render(neutral, plan, default_schedule(neutral, plan)))
    ours = ("launch", "programs", "stream_programs", "walk_programs")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "reduce_partials":
            _forget_integers(node)
        if isinstance(node, ast.FunctionDef):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            if node.name.startswith(ours) or any("triton" in m or "gluon" in m for m in marks):
                if ast.get_docstring(node) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
                if node.name == emit_reduce.KERNEL:
                    _forget_integers(node)
                found.append(node)
    text = "\n".join(map(ast.unparse, found))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _forget_integers(tree: ast.AST) -> None:
    """Those of sums of partial sums: how many programs sum how many columns follows from the
    channels and the schedule.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            node.value = 0


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["targets"] = targets
    environment.filters["block"] = _block
    return environment


def _template(name: str) -> str:
    """A template, its lines `#% ...` as blocks: Jinja's line statements eat blank lines."""
    text = (folder("templates") / name).read_text()
    return re.sub(r"^[ \t]*#% ?(.*)$", r"{% \1 %}", text, flags=re.MULTILINE)


_NOTHING = "\0"  # in place of a block without lines; removed with its line


def _block(text: str, indent: int) -> str:
    """What a macro printed as lines of a block, without its last line break."""
    return textwrap.indent(text.strip("\n"), " " * indent) or _NOTHING


# ------------------------------------------------------------------------------------------- words


def _summary(spec: OpSpec) -> str:
    inner = f"{spec.filter.length}-tap {spec.filter.kind.value} causal convolution"
    if spec.filter.kind is FilterKind.MODAL:
        of = "pairs of complex exponentials" if spec.filter.pairs else "exponentials"
        inner = f"causal convolution with sums of {spec.filter.modes} {of}"
    words = [
        inner,
        f"filters shared by {spec.group_width} channels" if spec.group_width > 1 else "",
    ]
    if spec.featurizer:
        words.append(f"featurizer of {spec.featurizer.length} taps")
    gates = [name for name, on in (("pre", spec.gates.pre), ("post", spec.gates.post)) if on]
    words.append(f"{' and '.join(gates)} gate{'s' if len(gates) > 1 else ''}" if gates else "")
    words.append(spec.activation.value if spec.activation.value != "none" else "")
    return ", ".join(word for word in words if word)


def _formula(spec: OpSpec) -> str:
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


def _filter_size(spec: OpSpec) -> str:
    if spec.filter.kind is FilterKind.MODAL:
        return f"N = {spec.filter.modes} {'pairs of modes' if spec.filter.pairs else 'modes'}"
    return f"K = {spec.filter.length} taps"


def _taps(spec: OpSpec) -> list[str]:
    """Parameters that are taps, (rows, K)."""
    return [p.name for p in spec.parameters if p.name in ("filter", "featurizer")]


def _computes(spec: OpSpec) -> bool:
    """Whether kernels take parameters that are computed from what is given, in some dtype."""
    return spec.filter.kind in (FilterKind.DECAY, FilterKind.MODAL)


def _conversions(spec: OpSpec) -> list[str]:
    """Lines that make what kernels take of what is trained."""
    lines = [f"{name} = two_axes({name})" for name in _taps(spec)]
    if spec.filter.kind is FilterKind.DECAY:
        lines.append("filter = decayed(filter.to(dtype))")
    if spec.filter.parametrisation is Parametrisation.P_GAMMA:
        lines.append("log_poles = poles(p.to(dtype), gamma.to(dtype))")
    if spec.filter.kind is FilterKind.MODAL:  # other parameters are cast where they are loaded
        others = {"p", "gamma", "featurizer", "skip", "bias"}
        names = [p.name for p in spec.parameters if p.name not in others]
        lines += [f"{name} = {name}.to(dtype)" for name in names]
    return lines


def _effective(spec: OpSpec, x: str) -> str:
    """The parameters as forward_op takes them beside an input x."""
    arguments = [p.name for p in spec.parameters]
    if _computes(spec):
        arguments.append(f"dtype=torch.promote_types({x}.dtype, torch.float32)")
    return f"effective({', '.join(arguments)})"


def _packing(spec: OpSpec) -> str:
    names = ", ".join(spec.inputs)
    if spec.layout.projection is Projection.INTERLEAVED:
        return f"channel d holds {names} at {len(spec.inputs)} d, {len(spec.inputs)} d + 1, ..."
    return f"blocks of D channels, {names} in this order"


def _meaning(spec: OpSpec, name: str) -> str:
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
            return f"{order} multiplies the current sample; {_packing(spec)}"
        case "skip":
            return "times z, added to the convolution"
        case _:
            return "times z, added" if spec.bias is Bias.GATED else "added to the convolution"


# ----------------------------------------------------------------------------------------- helpers


@dataclass(frozen=True, slots=True)
class _Function:
    name: str
    text: str
    uses: frozenset[str]


@cache
def _part(name: str) -> tuple[_Function, ...]:
    """The top-level functions of one file in templates/parts/, as written there."""
    path = folder("templates") / "parts" / f"{name}.py"
    source = path.read_text()
    lines = source.splitlines()
    functions = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            names = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
            assert node.end_lineno is not None
            text = "\n".join(lines[first - 1 : node.end_lineno])
            functions.append(_Function(node.name, text, names))
    return tuple(functions)


def _texts(part: str) -> list[str]:
    """The text of every helper of a part."""
    return [function.text for function in _part(part)]


def _op_helpers(spec: OpSpec, *, fixed_length: bool) -> list[str]:
    """Those of calls, without what an operator has no use for."""
    others = [] if _taps(spec) else ["two_axes"]
    others += [] if fixed_length else ["refuse_symbols"]
    return [f.text for f in _part("op") if f.name not in others]


def _closure(parts: tuple[str, ...], wanted: set[str]) -> list[str]:
    """The text of the wanted helpers and of the helpers that they call, callees before callers.

    The first part that defines a name wins.
    """
    known: dict[str, _Function] = {}
    for part in parts:
        for function in _part(part):
            known.setdefault(function.name, function)
    order: list[str] = []

    def visit(name: str) -> None:
        if name in known and name not in order:
            for used in sorted(known[name].uses - {name}):
                visit(used)
            order.append(name)

    for name in sorted(wanted, key=lambda name: list(known).index(name)):
        visit(name)
    return [known[name].text for name in order]


# ----------------------------------------------------------------------------------------- kernels


def _units(spec: OpSpec, kernel: KernelPlan) -> dict[str, str]:
    """The constexpr that names each activation's stride along its contiguous axis."""
    units = dict.fromkeys((*kernel.program.loads, *kernel.program.stores), "1")
    units |= {name: "UNIT" for name in spec.inputs if name in units}
    return units | {f"d_{name}": "D_UNIT" for name in spec.inputs if f"d_{name}" in units}


# The constexpr that says how many lanes a row has beside N, and for accumulators.
_LANES = {
    "tile": ("BLOCK_D", "BLOCK_D"),
    "stream": ("M", "M"),
    "recurrence": ("H", "M // 2"),
}


def _scope(spec: OpSpec, plan: Plan, kernel: KernelPlan) -> Scope:
    """How a kernel's skeleton names what statements call helpers with."""
    lanes, accumulators = _LANES[kernel.skeleton]
    # Streams load channels-last tiles as channels-first ones, with the strides exchanged.
    exchanged = kernel.skeleton == "stream" and plan.layout is Layout.BLD
    return Scope(
        strides={
            name: f"{unit}, {name}_row" if exchanged else f"{name}_row, {unit}"
            for name, unit in _units(spec, kernel).items()
        },
        lanes=lanes,
        accumulators=accumulators,
        hints=("EVICT_LAST",) * kernel.hinted,
        terms=tap_terms(spec),
        state_size=spec.filter.state_size,
        inputs=spec.inputs,
        time=kernel.program.time,
    )


def _kernel(spec: OpSpec, plan: Plan, kernel: KernelPlan) -> dict[str, Any]:
    """What the skeleton asks for."""
    program = kernel.program
    units = _units(spec, kernel)
    shapes = {p.name: str(p.shape) for p in spec.parameters}
    shapes.setdefault("log_poles", shapes.get("residues", ""))
    scope = _scope(spec, plan, kernel)
    zeros, loads = carried(program, scope)

    def lines(statements: Iterable[Statement]) -> list[str]:
        return statement_lines(tuple(statements), dataclasses.replace(scope, held={}))

    doc = "Gradients of every input, and partial sums of those of parameters."
    if kernel is plan.forward:
        doc = _formula(spec).replace("\n", "; ")
    if kernel in plan.sums:
        doc = f"What every tile adds to the {'state' if program.time == +1 else 'adjoint state'}."
    return {
        "skeleton": f"{kernel.skeleton}.py.j2",
        "function": f"{spec.op}_{kernel.name}",
        "doc": doc,
        "activations": [*program.loads, *program.stores],
        "units": ["UNIT", "D_UNIT"] if kernel is plan.backward else ["UNIT"],
        "pointers": list(units.items()),
        "parameters": [(name, shapes[name]) for name in program.parameters],
        "prologue": [*lines(program.prologue), *zeros],
        "carried": loads,
        "warmup": lines(program.warmup),
        "body": lines(program.body),
        "resets": lines(program.totals),
        "epilogue": lines(
            together(program.epilogue) if kernel.skeleton == "recurrence" else program.epilogue
        ),
        "backward": program.time == -1,
        "sums": kernel in plan.sums,
        "parts": any(isinstance(s, Parts) for s in program.body),
        "length": spec.filter.length,
        "modes": spec.filter.state_size,
        "padded_modes": max(16, 1 << (max(1, spec.filter.state_size) - 1).bit_length()),
        "lag": featurizer_lag(spec),
        "roles": len(spec.inputs),
        "poles": _poles(spec, plan),
        "exact": spec.precision is Precision.EXACT,
        "width": spec.group_width,
        "partial_rows": program.partial_rows,
        "partial_groups": program.partial_groups,
        "hinted": kernel.hinted,
    }


def _poles(spec: OpSpec, plan: Plan) -> str:
    """Pointers to what a channel's modes decay by, and turn by if they are pairs."""
    modes = [node for node in plan.graph.parameters if isinstance(node, Modes)]
    views = [view for node in modes for view in node.views[: len(node.views) // 2]]
    return ", ".join(f"{v.tensor}_ptr + ({row_of(v)}) * {v.length}" for v in views)


def _twin(plan: Plan, schedule: Schedule) -> KernelPlan | None:
    """The kernel that has a twin for sm_90, if the schedule asks for one."""
    return plan.backward if schedule.twin("backward") else None


def _phased_kernel(spec: OpSpec, plan: Plan, kernel: KernelPlan) -> dict[str, Any]:
    """What the skeleton of a twin for sm_90 asks for."""

    scope = _scope(spec, plan, kernel)

    def printed(statement: Statement, held: dict[str, Rows]) -> list[str]:
        return [str(c) for c in statement.calls(dataclasses.replace(scope, held=held))]

    return _kernel(spec, plan, kernel) | {
        "skeleton": "stream_sm90.py.j2",
        "function": f"{spec.op}_{kernel.name}_sm90",
        **phased_kernel(kernel, printed),
    }


def _launch_context(spec: OpSpec, plan: Plan, schedule: Schedule) -> dict[str, Any]:
    assert plan.forward is not None and plan.backward is not None
    forward, backward = plan.forward.program, plan.backward.program
    wanted = {"locate", "advance"}
    wanted |= set().union(*(helpers_of(k.program, _scope(spec, plan, k)) for k in plan.kernels))
    joins = bool(plan.sums and featurizer_lag(spec))
    wanted |= {"join_spans"} if joins else set()
    helpers = _closure(plan.forward.parts, wanted)
    twin = _twin(plan, schedule)
    if twin is not None:
        wanted = helper_names(twin)
        helpers += [text for text in _closure(_PARTS_SM90, wanted) if text not in helpers]
    inputs = [f"d_{name}" for name in spec.inputs]
    sums = emit_reduce.sections(spec, plan, schedule, op_parameters(spec))
    return {
        "schedule": _numbers(plan, schedule),
        "numbers": _literal({d: dict(schedule.numbers(d)) for d in DIRECTIONS}, 0),
        "helpers": helpers + (_texts("reduce") if sums else []),
        "twin": twin is not None,
        "sums": {"partials": emit_reduce.summed(sums), "sections": sums},
        "launch_helpers": _launch_helpers(plan, schedule),
        "forward_stores": [("y", *plan.saved).index(name) for name in forward.stores],
        "forward_parameters": list(forward.parameters),
        "backward_loads": list(backward.loads),
        "backward_stores": [inputs.index(name) for name in backward.stores],
        "backward_parameters": list(backward.parameters),
        "joins": joins,
        "programs": _literal({d: programs(spec, schedule, d) for d in DIRECTIONS}, 0),
        "streams": plan.forward.skeleton == "stream",
        "recurrence": plan.forward.skeleton == "recurrence",
        "walks": plan.forward.skeleton != "tile",
        "tiles": 'schedule["TILES"]' if plan.forward.skeleton == "tile" else "tiles",
        "partial_rows": backward.partial_rows,
        "partial_groups": backward.partial_groups,
        "reduce_options": _literal({"num_warps": emit_reduce.WARPS, "enable_fp_fusion": True}, 4),
    }


def _launch_helpers(plan: Plan, schedule: Schedule) -> list[str]:
    """Those of the launchers, with one of the two ways to count programs."""
    assert plan.forward is not None
    counts = {"tile": "programs", "stream": "stream_programs", "recurrence": "walk_programs"}
    others = [name for how, name in counts.items() if how != plan.forward.skeleton]
    others += [] if plan.states else ["allocate_states", "whole_state"]
    others += [] if _twin(plan, schedule) else ["suits_sm90"]
    others += [] if plan.reductions else ["reduce_partials"]
    return [f.text for f in _part("launch") if f.name not in others]


# Numbers that the compiler takes, not the kernel.
_OPTIONS = ("num_warps", "num_stages", "maxnreg")
_PARTS_SM90 = ("sm90", "rows", "channels_first")


def _numbers(plan: Plan, schedule: Schedule) -> list[tuple[str, str, str]]:
    """The numbers of each kernel as its constants and as the compiler's options."""
    found = []
    for kernel in (*plan.kernels, *plan.sums):
        found.append((kernel.name, kernel_numbers(plan, kernel, schedule)))
        if twin := schedule.twin(kernel.name):
            found.append((f"{kernel.name}_sm90", twin))
    literals = []
    for name, numbers in found:
        options: dict[str, Any] = {k: v for k, v in numbers.items() if k in _OPTIONS and v}
        # stated, because Triton's default changes between versions
        options["enable_fp_fusion"] = True
        constants = {k: v for k, v in numbers.items() if k not in _OPTIONS}
        literals.append((name, _literal(constants, 4), _literal(options, 4)))
    return literals

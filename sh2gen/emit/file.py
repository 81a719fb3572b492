"""A generated file as its sections: each is a few blocks of text, all known before any is printed.

Sections are chosen here; what is in one depends on the operator, not on what its kernels fuse.
"""

from __future__ import annotations

import textwrap
from typing import Any

from sh2gen.emit import calls, config, decode, documents, eager, kernels, ranks, reduce
from sh2gen.emit.launchers import launchers, state_of
from sh2gen.emit.parts import GEOMETRY, closure, part, texts
from sh2gen.emit.text import filled, kernel, literal
from sh2gen.emit.words import class_name, filter_size, formula, meaning, packing, summary
from sh2gen.plan.geometry import DOCUMENTS_CONFIG, LEAVE_CONFIG, counted_together
from sh2gen.plan.plan import EagerConv, Plan
from sh2gen.plan.values import Layout
from sh2gen.spec.language import FilterKind, Parametrisation, Sequences, TapOrder
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import known

# Of templates/parts/direct.py.
_FILES_OWN = ("forward_of", "backward_of", "decode_of", "check_decoding", "apply_direct")
_VERSIONS = ("3.6.0",)  # tried on a GPU with templates/parts/direct.py


def blocks(spec: OpSpec, plan: Plan, library: str) -> tuple[str, list[str]]:
    """A file as what comes before its tables of widths and configs, and the blocks after them,
    which two empty lines part.

    Args:
        library: the name of its library ops.
    """
    found = [filled("sections/spec.py.j2", spec=literal(spec.to_dict(), 0), shapes=_shapes(spec))]
    if plan.kernels:
        found += _kernels(spec, plan)
        found += _launchers(spec, plan)
    found += _eager(spec, plan)
    found += _operator(spec, plan, library)
    return _header(spec, plan), found


def _shapes(spec: OpSpec) -> str:
    """Of parameters, as a dict in a file."""
    dims = {p.name: f"({', '.join(p.dims)}{',' * (len(p.dims) == 1)})" for p in spec.parameters}
    shapes = ", ".join(f'"{name}": {shape}' for name, shape in dims.items())
    return f"{{{shapes}}}"


def _layout(plan: Plan) -> str:
    """The part whose helpers know how activations lie in memory."""
    return f"layout_{plan.layout.value.lower()}"


def _shape(plan: Plan) -> str:
    return "(B, D, L)" if plan.layout is Layout.BDL else "(B, L, D)"


def _banner(title: str) -> str:
    return filled("sections/banner.py.j2", title=title)


def _header(spec: OpSpec, plan: Plan) -> str:
    bdl = plan.layout is Layout.BDL
    constants: list[tuple[str, str, str]] = [
        ("OP", literal(spec.op, 0), ""),
        ("PLAN", literal(plan.name, 0), ""),
        ("LAYOUT", literal(plan.layout.value, 0), ""),
        ("INPUTS", literal(spec.inputs, 0), ""),
        ("PARAMETERS", literal(tuple(p.name for p in spec.parameters), 0), ""),
        ("TAPS", literal(_taps(spec), 0), "also in the shape of a conv1d's weight"),
        ("CHANNELS, GROUPS", f"{spec.channels}, {spec.filter.groups}", "unless others are given"),
        ("SHAPE", literal(_shape(plan).replace("D", "{}"), 0), "of an activation"),
        ("TIME, CHANNEL", f"{2 if bdl else 1}, {1 if bdl else 2}", "axes of an activation"),
        ("LEAST", "1" if spec.state is None else "0", "steps of a call"),
        ("BYTE_BUDGET", "2**30", "of the temporaries of plain PyTorch"),
        ("PLAIN", "0", "how many want plain PyTorch on every device, instead of library ops"),
        ("RINGS", literal(decode.ring_table(spec), 0), "of a state that decodes: lag and roles"),
        (
            "COUNTED",
            str(counted_together(spec.filter.modes or 0)),
            "channels that it counts as one",
        ),
    ]
    shape = (spec.filter.modes, *((2,) if spec.filter.pairs else ())) if spec.filter.modes else ()
    constants.append(("MODES_SHAPE", literal(shape, 0), "of a channel, if a state has modes"))
    constants += ranks.constants(spec, plan)
    if spec.filter.kind is FilterKind.MODAL:
        constants.append(("BLOCK", "64", "steps that plain PyTorch convolves by one product"))
    if spec.filter.decay is not None:
        decay = spec.filter.decay
        constants += [
            ("EXPONENTS", literal(decay.preset.exponents, 0), "of ten, where the ladder ends"),
            ("REPEATS", str(decay.repeats), "of the ladder of decays"),
            ("CACHE_LENGTH", str(decay.cache_length), ""),
            ("LAG_LAST", str(spec.filter.taps is TapOrder.LAG_LAST), ""),
        ]
    if plan.kernels:
        constants += [
            ("WIDEST", "1" if bdl else str(len(spec.inputs)), "stride of the last axis"),
            ("BINARIES: dict", "{}", "compiled kernels by the traits of their arguments"),
            ("CHOSEN: dict", "{}", "configs by device, channels and groups"),
            ("TOLD", literal(kernels.OPTIONS, 0), "to the compiler, of a config"),
            ("SUMS", literal({"num_warps": kernels.WARPS}, 0), "config of what adds sums"),
            ("LAUNCHES", "threading.local()", "those that a thread wants noted"),
        ]
    if plan.kernels and spec.sequences is Sequences.PACKED:
        what = "config of what finds documents"
        constants += [
            ("DOCUMENTS", literal(DOCUMENTS_CONFIG, 0), what),
            ("STARTERS: dict", "{}", "what launches that, by the traits of calls"),
        ]
    if plan.leave is not None:
        constants.append(("LEAVE", literal(LEAVE_CONFIG, 0), "config of what leaves a past"))
    if plan.kernels:
        versions = "of Triton whose compiled kernels are launched without its launcher"
        constants += [
            ("TAPES: dict", "{}", "what calls do, by the traits of their tensors"),
            ("RECENT: dict", "{}", "the last call of each kind"),
            ("MOST_TAPES", "1024", ""),
            ("DIRECT", literal(_VERSIONS, 0), versions),
        ]
    if "PRODUCT_ROWS" in config.rules(spec, plan).facts:
        rows = {gpu.capability // 10: gpu.product_rows for gpu in known() if gpu.product_rows > 16}
        what = "of product instructions by compute capability, others 16"
        constants.append(("PRODUCT_ROWS: dict", repr(dict(sorted(rows.items()))), what))
    decays = bool(plan.kernels) and spec.filter.decay is not None
    return filled(
        "sections/header.py.j2",
        op=spec.op,
        summary=summary(spec),
        formula=textwrap.indent(formula(spec), "    "),
        shape=_shape(plan),
        filter_size=filter_size(spec),
        plan=plan.name,
        kernels=bool(plan.kernels),
        gluon=any(v.language == "gluon" for k in plan.kernels for v in k.variants),
        direct=bool(plan.kernels),
        ranks=spec.context is not None,
        modules=["math"] * (decays or ranks.is_whole(spec, plan))
        + ["threading"] * bool(plan.kernels),
        constants=constants,
    )


def _kernels(spec: OpSpec, plan: Plan) -> list[str]:
    found: list[str] = []
    for parts, wanted in kernels.helpers_of(spec, plan):
        found += [text for text in closure(parts, wanted) if text not in found]
    sections = reduce.sections(spec, plan)
    if sections:
        wanted = {"sum_rows", "sum_blocks", "store_gradient"}
        wanted |= {name for s in sections for name in s.helpers}
        found += [t for t in closure(("reduce", "trained"), wanted) if t not in found]
    printed = [kernel(k["skeleton"], k) for k in kernels.texts(spec, plan)]
    if sections:
        values = {
            "partials": reduce.partials(spec, plan),
            "sections": sections,
            "constants": list(reduce.constants(spec, plan)),
            "gradients": reduce.gradients(spec, plan),
            "sizes": list(reduce.sizes(spec, plan)),
        }
        printed.append(kernel("reduce.py.j2", values))
    return [_banner("Helpers of the kernels"), *found, _banner("Kernels"), *printed]


def _launchers(spec: OpSpec, plan: Plan) -> list[str]:
    variants = [v for k in plan.kernels for v in k.variants]
    wanted = {k.grid.__name__ for k in plan.kernels} | {"even"}
    suits = {v.suits for v in variants}
    for variant in variants:
        wanted |= {variant.grid.__name__, variant.config.__name__}
    geometry = {helper.name for helper in part(GEOMETRY)}
    for helper in part("launch"):
        if helper.name in suits:
            wanted |= helper.uses & geometry
    if any(s.width == "SHARERS" for s in reduce.sections(spec, plan)):
        wanted.add("sharers")
    wanted |= {k.narrowed.__name__ for k in plan.first_kernels if k.narrowed is not None}
    wanted |= {k.grid.__name__ for k in plan.first_kernels}
    wanted |= {"step_grid", "step_config"} if plan.step is not None else set()
    if any(a.name == "SHARE" for a in (plan.step.arguments if plan.step else ())):
        wanted.add("shared_channels")
    others = ["segment"] if plan.states else ["allocate_states"]
    others += [] if plan.reductions else ["reduce_partials"]
    others += [h.name for h in part("launch") if h.name.startswith("suits_")]
    others = [name for name in others if name not in suits]
    rules = config.rules(spec, plan)
    asks = {"SHARED": "shared_memory", "PRODUCT_ROWS": "rows_of_products"}
    unasked = [name for fact, name in asks.items() if fact not in rules.facts]
    terms = config.terms(spec)
    counted = any(a.name == "TERMS" for k in plan.kernels for a in k.arguments)
    if terms.isdigit() or not (counted or "TAP_TERMS" in rules.facts):
        terms = ""
    configs = filled(
        "sections/config.py.j2",
        terms=terms,
        rules=rules.lines,
        batched=rules.batched,
        roles="{" + ", ".join(f'"{role}": {role}' for role in config.configured(plan)) + "}",
        variants=[
            (f"{k.name}_{v.name}", k.role, v.config.__name__)
            for k in plan.kernels
            for v in k.variants
        ],
    )
    return [
        _banner("Launchers"),
        *closure((GEOMETRY,), wanted),
        *texts("config", without=unasked),
        configs,
        *texts("launch", without=others),
        *texts(_layout(plan), without=["allocate"]),
        *launchers(spec, plan),
    ]


def _eager(spec: OpSpec, plan: Plan) -> list[str]:
    title = "tensors on a CPU" if plan.kernels else "the algorithm of this file on every device"
    others = [] if _taps(spec) else ["two_axes"]
    blocks = plan.eager is not EagerConv.DIRECT
    modal = spec.filter.kind is FilterKind.MODAL
    if spec.state is not None and not modal:
        blocks = decode.context(spec, plan)["transforms"]
    others += [] if blocks else ["refuse_symbols"]
    others += [] if plan.states or (spec.state and plan.kernels) else ["differentiates"]
    others += ["spread"] if modal and spec.state is not None else []
    functions = []
    if spec.state is None:
        functions += [eager.eager_forward(spec, plan), eager.eager_backward(spec, plan)]
    if modal:
        functions.append(eager.eager_stateful(spec, plan))
    no_ladder = [] if plan.kernels else ["ladder_of"]
    return [
        _banner(f"Plain PyTorch: {title}"),
        *texts(_layout(plan), without=["rows_reached"]),
        *texts("packed_channels" if spec.interleaved else "packed_blocks"),
        *texts("op", without=others),
        *(texts("decay", without=no_ladder) if spec.filter.decay is not None else []),
        *(texts("poles") if spec.filter.parametrisation is Parametrisation.P_GAMMA else []),
        *closure(
            ("eager_pairs", "eager") if spec.filter.pairs else ("eager",),
            decode.helper_names(spec, plan)
            | (eager.eager_helper_names(plan) if spec.state is None else set())
            | ranks.helper_names(spec, plan),
        ),
        filled(
            "sections/eager.py.j2",
            layout=plan.layout.value,
            eager=[*functions, *ranks.functions(spec, plan)],
            typed_parameters=[f"{p.name}: Tensor" for p in spec.parameters],
            op_parameters=list(spec.kernel_parameters),
            conversions=_conversions(spec),
        ),
    ]


def _ladder_names(spec: OpSpec) -> str:
    """What is passed on beside tensors, if filters decay."""
    return ", first_group, groups_in_all" * (spec.filter.decay is not None)


def _operator(spec: OpSpec, plan: Plan, library: str) -> list[str]:
    context = _calls(spec, plan)
    found = [_banner("The operator: torch.library ops, autograd, checks, functions and module")]
    found.append(filled("sections/library_name.py.j2", library_name=library))
    found += texts("library")
    if spec.sequences is Sequences.PACKED:
        found.append(filled("sections/documents.py.j2", **context))
    stateful = spec.state is not None and plan.states
    if spec.state is None or plan.kernels:
        found.append(filled(f"sections/library{'_state' * stateful}.py.j2", **context))
    if plan.kernels:
        own = [] if context["direct"] else ["direct"]
        tapes = context["direct"] or decode.takes_chunks(spec, plan)
        own += [] if tapes else ["gradients_tape"]
        own += [] if plan.leave is not None or ranks.by_kernels(spec, plan) else ["directly"]
        found += [
            *texts("direct", without=[*_FILES_OWN, *own]),
            filled("sections/direct.py.j2", **context),
        ]
    others = [] if plan.kernels else ["require_triton"]
    found += texts("check", without=["parameter_shapes", *others])
    context |= decode.context(spec, plan)
    modal = spec.filter.kind is FilterKind.MODAL
    others = ["STATE", *([] if plan.step else ["strided"])]
    others += [] if modal else ["decode_modes"]
    others += [] if spec.history else ["past_of", "steps_before", "in_ring"]
    others += [] if not modal and (spec.filter.length or 1) > 1 else ["where_later"]
    others += [] if spec.history or modal else ["keep_in_ring", "ring_slots"]
    others += [] if spec.state is not None else ["state_like"]
    found += [_banner("The past of sequences"), *texts("decode", without=others)]
    found.append(filled("sections/state.py.j2", **context))
    found.append(_banner("Calls"))
    found.append(filled("sections/function.py.j2", **context))
    found.append(_banner("Decoding: a few steps in time after a past that is kept"))
    found.append(filled("sections/decode.py.j2", **context))
    if spec.context is not None:
        lines = calls.modes_lines(spec, plan) if modal else []
        found.append(_banner("Sequences that are split over ranks"))
        found += ranks.blocks(spec, plan, context, lines)
    found.append(filled("sections/module.py.j2", **context))
    return found


def _taps(spec: OpSpec) -> tuple[str, ...]:
    """Parameters that are taps, (rows, K)."""
    return tuple(p.name for p in spec.parameters if p.name in ("filter", "featurizer"))


def _calls(spec: OpSpec, plan: Plan) -> dict[str, Any]:
    """What sections say of calls."""
    n, shape = len(spec.inputs), _shape(plan)
    x, parameters = spec.inputs[0], [p.name for p in spec.parameters]
    saved = [*plan.saved, *(["states"] if plan.states else [])]
    packed, about = spec.sequences is Sequences.PACKED, documents.context(spec, plan)
    past = [] if plan.states and not packed else state_of(spec, plan)
    numbers = eager.ladder(spec)
    if packed and not plan.kernels:
        past, numbers = ["cu_seqlens"], [*numbers, "max_length: int"]
    number_names = "".join(f", {n.split(':')[0]}" for n in numbers)
    modal = spec.filter.kind is FilterKind.MODAL
    enters = spec.state is not None and spec.state.initial
    leaves = spec.state is not None and spec.state.final
    name = class_name(spec.op)
    decays = spec.filter.decay is not None
    ladder = {"first_group": ("int", 0), "groups_in_all": ("int | None", None)} if decays else {}
    ladder_arguments = [f"{n}: {kind} = {default}" for n, (kind, default) in ladder.items()]
    state_argument = f", state: {name}State | None = None" if enters else ""
    state_argument += about["documents_taken"]
    slices = (
        [
            ("first_group", "which group of the ladder of decays the first one here is"),
            ("groups_in_all", "groups that share the ladder; absent: those that are here"),
        ]
        if decays
        else []
    )
    passed = "".join(f", {name}={name}" for name in ladder)
    more = state_argument + "".join(f", {a}" for a in ladder_arguments)
    docs = [(name, f"{shape}, bfloat16, float16 or float32") for name in spec.inputs]
    docs += [
        (p.name, f"({', '.join(p.dims)}), float32; {meaning(spec, p.name)}")
        for p in spec.parameters
    ]
    if enters:
        before = (
            "of the sequence before these steps, as a call returned it; absent: it begins here"
        )
        docs.append(("state", before))
    docs += about["documents_docs"]
    return {
        "op": spec.op,
        "class_name": name,
        "inputs": list(spec.inputs),
        "channels": spec.channels,
        "groups": spec.filter.groups,
        "parameter_names": parameters,
        "op_arguments": [f"{x}: Tensor", *(f"{name}: Tensor | None" for name in spec.inputs[1:])]
        + [f"{name}: Tensor" for name in (*parameters, *past)],
        "past": past,
        "numbers": numbers,
        "number_names": number_names,
        "documents": packed,
        **about,
        "past_passed": f", state=[{', '.join(past)}]" if past else "",
        "past_state": spec.state is not None and not modal,
        "stateful": spec.state is not None,
        "input_count": n,
        "keep": ["keep: bool"] if plan.states else [],
        "saved": saved,
        "saved_activations": list(plan.saved),
        "saved_arguments": [f"{name}: Tensor" for name in saved],
        "op_result": f"tuple[{', '.join(['Tensor'] * (1 + len(saved)))}]" if saved else "Tensor",
        "outputs": ["y", *plan.saved],
        "cpu_result": _cpu_result(spec, plan),
        "fake": _fake(spec, plan),
        "kernels": bool(plan.kernels),
        "states": plan.states,
        "modes": spec.filter.state_size,
        "recurrent": spec.state is not None and modal,
        "recurrent_kernels": spec.state is not None and plan.states,
        "direct": _direct(spec, plan),
        "raw": _direct(spec, plan) == "call",
        "count": len(parameters),
        "fixed_length": plan.eager is not EagerConv.DIRECT,
        "ladder": eager.ladder(spec),
        "ladder_names": _ladder_names(spec),
        "ladder_passed": passed,
        "ladder_more": "".join(f", {a}" for a in eager.ladder(spec)),
        "shape": shape,
        "packed_shape": shape.replace("D", f"{n} D"),
        "packs": n > 1,
        "packing_doc": packing(spec),
        "leaves": leaves,
        "state_argument": state_argument,
        "more_arguments": more,
        "result_type": f"tuple[Tensor, {name}State]" if leaves else "Tensor",
        "formula_line": f"{spec.op}: {summary(spec)}",
        "argument_docs": docs + slices,
        "body": calls.body(spec, plan, _ladder_names(spec)),
        "packed_lines": calls.packed_lines(spec, plan, _ladder_names(spec), passed),
        "parameter_docs": [f"{p.name} ({', '.join(p.dims)})" for p in spec.parameters],
        "module_docs": slices,
        "decay_arguments": ladder_arguments,
        "decay_names": list(ladder),
        "decay_defaults": tuple((n, default) for n, (_, default) in ladder.items()),
        "inits": [(p.name, p.init) for p in spec.parameters],
        "module_arguments": ", state=state" * enters
        + about["documents_given"]
        + "".join(f", {name}=self.{name}" for name in ladder),
        "ranks": spec.context is not None,
        "decode_ladder": "".join(f", {name}=self.{name}" for name in ladder),
    }


def _direct(spec: OpSpec, plan: Plan) -> str:
    """Where calls are tried that only eager PyTorch sees: of the whole `call`, of the library `op`
    where a history is joined first, or nowhere.
    """
    if not plan.kernels or (spec.state is not None and plan.states):
        return ""
    return "call" if spec.state is None else "op"


def _cpu_result(spec: OpSpec, plan: Plan) -> str:
    """What forward_op gives of plain PyTorch's outputs: it needs no states."""
    if plan.states:
        none = f"allocate_states(y, y.shape[CHANNEL], 0, {{}}, {spec.filter.state_size}, False)"
        return f"y, {none}"
    return f"y, {', '.join(plan.saved)}" if plan.saved else "y"


def _fake(spec: OpSpec, plan: Plan) -> list[str]:
    """What forward_op gives, without its values."""
    x = spec.inputs[0]
    if plan.states:
        groups, size = f"{spec.parameters[0].name}.shape[0]", spec.filter.state_size
        kept = f"channels, steps, config, {size}, keep and {x}.is_cuda"
        return [
            f'config = configs_of({x}, channels, {groups})["forward"]',
            f"kept = allocate_states({x}, {kept})",
            f"return allocate({x}, steps, channels), kept",
        ]
    if plan.saved:
        count = 1 + len(plan.saved)
        return [f"return tuple(allocate({x}, steps, channels) for _ in range({count}))"]
    return [f"return allocate({x}, steps, channels)"]


def _conversions(spec: OpSpec) -> list[str]:
    """Lines that make what plain PyTorch computes with of what is trained."""
    taps = _taps(spec)
    names = [p.name for p in spec.parameters]
    lines = [
        f"{name} = {f'two_axes({name})' if name in taps else name}.to(dtype)" for name in names
    ]
    if spec.filter.parametrisation is Parametrisation.P_GAMMA:
        lines.append("log_poles = poles(p, gamma)")
    return lines

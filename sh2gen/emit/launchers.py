"""Launchers: what a plan does in a call, an action after the other, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sh2gen.emit import reduce
from sh2gen.emit.config import terms
from sh2gen.emit.reduce import op_parameters
from sh2gen.emit.text import folded, targets
from sh2gen.plan.arguments import Argument, Of
from sh2gen.plan.plan import Allocate, Join, Kernel, Launch, Plan, Reduce, Role
from sh2gen.spec.operator import OpSpec

_INDENT = "    "
# Constants whose values a launcher finds; all others are literals or come from a config.
_FOUND = {
    "CHANNELS": "channels",
    "WIDTH": "width",
    "UNIT": "unit",
    "D_UNIT": "d_unit",
    "STRIDE_UNIT": "step",
    "EVEN": "even(bounds)",
    "KEEP": "keep",
    "STATEFUL": "state is not None",
    "SPLIT": "grid.splits > 1",
}
_BOUNDS = ("read_begin", "read_end", "write_end")


def call(function: str, arguments: Iterable[str], result: str = "") -> list[str]:
    """A call, an argument a line."""
    left = f"{result} = " if result else ""
    return [f"{left}{function}(", *(f"{_INDENT}{a}," for a in arguments), ")"]


def launchers(spec: OpSpec, plan: Plan) -> list[str]:
    """The text of each launcher."""
    unknown = set(plan.actions) - {Role.FORWARD, Role.BACKWARD}
    assert not unknown, f"{plan.name}: no launcher is printed for {', '.join(unknown)}"
    return [_forward(spec, plan), _backward(spec, plan)]


def _function(name: str, arguments: Sequence[str], doc: str, body: Sequence[str]) -> str:
    head = [f"def {name}(", *(f"{_INDENT}{a}," for a in arguments), ") -> list[Tensor]:"]
    described = folded(f'{_INDENT}"""{doc}"""')
    return "\n".join([*head, described, *(_INDENT + line for line in body)])


def _forward(spec: OpSpec, plan: Plan) -> str:
    kernel = plan.kernel(Role.FORWARD)
    assert kernel is not None
    arguments = ["inputs: Sequence[Tensor]", "parameters: Sequence[Tensor]", *_RANGE]
    saved = ["y", *plan.saved, *(["states"] if plan.states else [])]
    doc = f"[{', '.join(saved)}] for steps begin .. end - 1 of the segment after `context` steps."
    if plan.states:
        arguments += ["keep: bool = True", "state: Sequence[Tensor] | None = None"]
        doc += (
            "\n\n    With `state`, the history and the modes' state before a whole sequence, also "
            "the state after it.\n    "
        )
    body = _prologue(spec, kernel, spec.inputs[0], 'config["BLOCK_T"]')
    body += _grid(kernel, spec.inputs[0])
    # States are of the tiles of the variant that is chosen, if there is any to choose.
    before = True if kernel.variants else None
    body += _allocations(spec, plan, Role.FORWARD, spec.inputs[0], before)
    tensors = f"({targets((*spec.inputs, 'y', *plan.saved))})"
    if kernel.variants:
        body.append(f"tensors = {tensors}")
        tensors = "tensors"
    body.append(f"step = stride_step(config, {tensors}, grid.tiles)")
    if kernel.variants:
        body += _selection(kernel, spec.inputs[0])
        body += _allocations(spec, plan, Role.FORWARD, spec.inputs[0], before=False)
    body += _launches(spec, plan, Role.FORWARD)
    if plan.states:
        ends = ", ".join(saved)
        body.append(f"return [{ends}] if state is None else [{ends}, leaving]")
    else:
        body.append(f"return [{', '.join(saved)}]")
    return _function("launch_forward", arguments, doc, body)


_RANGE = ["context: int = 0", "begin: int = 0", "end: int | None = None"]


def _backward(spec: OpSpec, plan: Plan) -> str:
    kernel = plan.kernel(Role.BACKWARD)
    assert kernel is not None
    arguments = ["dy: Tensor", "inputs: Sequence[Tensor]", "parameters: Sequence[Tensor]"]
    arguments += ["saved: Sequence[Tensor]", *_RANGE]
    doc = (
        "Gradients of the inputs, packed if they are, then of "
        f"{', '.join(op_parameters(spec))}.\n\n"
        "    With a range, the gradients of inputs are for its steps and those of parameters sum "
        "over them;\n    `dy` and saved values cover the whole segment, without its context."
    )
    if plan.states:
        arguments += ["state: Sequence[Tensor] | None = None", "d_leaving: Tensor | None = None"]
        doc += (
            " With `state`, and the gradient\n    of the state after the sequence, also the "
            "gradients of the history and of the modes' state."
        )
    walks = any(a.name == "SEGMENTS" for a in kernel.arguments)
    tile = 'config["BLOCK_T"] * config["SEGMENTS"]' if walks else 'config["BLOCK_T"]'
    body = _prologue(spec, kernel, "dy", tile)
    saved = [*plan.saved, *(["states"] if plan.states else [])]
    if saved:
        body.append(f"{targets(saved)} = saved")
    if plan.states:
        body += [
            "if not states.numel():",
            f"{_INDENT}states = launch_forward("
            "inputs, parameters, context, begin, end, state=state)[1]",
        ]
    body += _allocations(spec, plan, Role.BACKWARD, "dy", before=True)
    gradients = [f"d_{name}" for name in spec.inputs]
    tensors = ", ".join([*spec.inputs, "dy", *plan.saved, *gradients])
    body.append(f"tensors = ({tensors})")
    body += _grid(kernel, "dy")
    body.append("step = stride_step(config, tensors, grid.tiles)")
    body += _selection(kernel, "dy")
    body += _allocations(spec, plan, Role.BACKWARD, "dy", before=False)
    body += _launches(spec, plan, Role.BACKWARD)
    if plan.states:
        history = "d_history.to(history.dtype)" if spec.lag else "torch.empty_like(history)"
        body += ["if state is not None:", f"{_INDENT}gradients += [{history}, d_entry]"]
    body.append("return gradients")
    return _function("launch_backward", arguments, doc + "\n    ", body)


def _prologue(spec: OpSpec, kernel: Kernel, like: str, tile: str) -> list[str]:
    """What every launcher begins with: tensors as kernels read them, sizes, and the config."""
    x = spec.inputs[0]
    names = f"({', '.join(spec.inputs)})" if len(spec.inputs) > 1 else targets(spec.inputs)
    parameters = op_parameters(spec)
    lines = [
        f"{names}, unit = common_unit(unpack(inputs))",
        f"{targets(parameters)} = (p.contiguous() for p in parameters)",
        *(["dy = dense(dy)"] if like == "dy" else []),
        f"channels, groups = {x}.shape[CHANNEL], {parameters[0]}.shape[0]",
        "width = channels // groups",
        f"configs = configs_of({x}, channels, groups)",
        f'config = configs["{kernel.role}"]',
        f"first, steps, bounds = segment({x}, context, begin, end, {tile})",
    ]
    return lines


def _grid(kernel: Kernel, like: str, grid: Callable[..., object] | None = None) -> list[str]:
    # A range that ends before its segment does is whole segments of a stream, for its sums' sake.
    whole = "bounds[1] > bounds[2]" if kernel.role is Role.BACKWARD else "False"
    name = (grid or kernel.grid).__name__
    return [f"grid = {name}({like}.shape[0], steps, channels, width, config, {whole})"]


def _selection(kernel: Kernel, like: str) -> list[str]:
    """The config and grid of the first variant that suits a call, if one does."""
    lines: list[str] = []
    for number, variant in enumerate(kernel.variants):
        own = variant.name
        suits = f"{variant.suits}(tensors, unit, step, begin, bounds, {own})"
        still = f'config is configs["{kernel.role}"] and ' * (number > 0)
        lines += [
            f'{own} = configs.get("{kernel.name}_{own}")',
            f"if {still}{own} is not None and {suits}:",
            f"{_INDENT}config = {own}",
            *(_INDENT + line for line in _grid(kernel, like, variant.grid)),
        ]
    return lines


def _allocations(
    spec: OpSpec, plan: Plan, role: Role, like: str, before: bool | None = None
) -> list[str]:
    """The allocations of a role: all, or those before the grid is known, or after."""
    found: list[str] = []
    for action in plan.actions[role]:
        if isinstance(action, Allocate):
            early = action.make in ("activations", "gradients")
            if before is None or early == before:
                found += _allocation(spec, plan, action, like)
    return found


def _allocation(spec: OpSpec, plan: Plan, action: Allocate, like: str) -> list[str]:
    """The lines of one allocation."""
    x, size, lag = spec.inputs[0], spec.filter.state_size, spec.lag
    kernel = plan.kernel(Role.BACKWARD)
    assert kernel is not None
    names = ", ".join(action.names)
    match action.make:
        case "activations":
            return [f"{name} = allocate({x}, steps, channels)" for name in action.names]
        case "gradients":
            ours = [f"d_{name}" for name in spec.inputs]
            return [
                "gradients = [allocate(x, steps) for x in inputs]",
                f"{targets(ours)} = unpack(gradients)",
                f"d_unit = {ours[0]}.stride(2)",
            ]
        case "states":
            return [f"{names} = allocate_states({x}, channels, steps, config, {size}, keep)"]
        case "split_sums":
            arguments = f"{like}, channels, steps, config, {size}, grid.splits > 1"
            return [f"{names} = allocate_states({arguments})"]
        case "past":
            return [f"{names} = whole_state(state, {x}, states, context, steps)"]
        case "leaving":
            return [f"{names} = torch.empty_like(entry) if state is not None else states"]
        case "future":
            d_entry, d_leaving = action.names
            return [
                f"{d_entry} = {d_leaving} = states",
                "if state is not None:",
                f"{_INDENT}assert d_leaving is not None",
                f"{_INDENT}{d_entry}, {d_leaving} = torch.empty_like(entry), "
                "d_leaving.contiguous()",
            ]
        case "edges":
            d_history, edges = action.names
            shape = f"(dy.shape[0], grid.splits, {len(spec.inputs)}, channels, 2, {lag})"
            return [
                f"{d_history} = {edges} = states",
                "if state is not None:",
                f"{_INDENT}{d_history} = torch.empty_like(history, dtype=torch.float32)",
                "if grid.splits > 1:",
                f"{_INDENT}{edges} = dy.new_empty({shape}, dtype=torch.float32)",
            ]
        case "partials":
            shape = f"(dy.shape[0] * grid.splits * grid.sums, {kernel.program.partial_rows}, "
            return [f"{names} = dy.new_empty({shape}channels), dtype=torch.float32)"]
        case "group_partials":
            shape = f"(dy.shape[0] * grid.splits, {kernel.program.partial_groups}, grid.columns)"
            return [f"{names} = dy.new_empty({shape}, dtype=torch.float32)"]
    raise AssertionError(f"no launcher makes {action.make}")


def _launches(spec: OpSpec, plan: Plan, role: Role) -> list[str]:
    """The actions of a role that run something, a call each."""
    found: list[str] = []
    for action in plan.actions[role]:
        match action:
            case Launch(kernel=kernel, when_split=True):
                found += ["if grid.programs and grid.splits > 1:"]
                lines = _launch(spec, kernel, kernel.name, kernel.arguments, split=True)
                found += [_INDENT + line for line in lines]
            case Launch(kernel=kernel):
                found += _chosen(spec, kernel)
            case Join(arguments=arguments):
                found += ["if grid.programs and grid.splits > 1:"]
                found += [_INDENT + line for line in _join(spec, arguments)]
            case Reduce():
                found += _reduce(spec, plan)
            case Allocate():
                pass  # `_allocations`
            case _:
                raise AssertionError(f"no launcher runs {action}")
    return found


def _chosen(spec: OpSpec, kernel: Kernel) -> list[str]:
    """The launch of a kernel, or of the variant that suits the call."""
    own = _launch(spec, kernel, kernel.name, kernel.arguments)
    lines = ["if grid.programs:", *(_INDENT + line for line in own)]
    for variant in reversed(kernel.variants):
        name = f"{kernel.name}_{variant.name}"
        other = _launch(spec, kernel, name, variant.arguments)
        lines = [
            f"if grid.programs and config is {variant.name}:",
            *(_INDENT + line for line in other),
            "el" + lines[0],
            *lines[1:],
        ]
    return lines


def _launch(
    spec: OpSpec, kernel: Kernel, name: str, arguments: Sequence[Argument], split: bool = False
) -> list[str]:
    """One launch, from what the kernel takes; of all splits of a sequence but one, if so asked."""
    programs = "grid.programs"
    if split:
        programs += " // grid.splits * (grid.splits - 1)"
    found = [f"{spec.op}_{name}", programs]
    for a in arguments:
        match a.of:
            case Of.ACTIVATION:
                begin = "first" if a.name in spec.inputs else "begin"
                begin = "0" if a.name in kernel.program.stores else begin
                found.append(f"*operand({a.name}, {begin}, step)")
            case Of.PARAMETER | Of.PARTIAL:
                found.append(a.name)
            case Of.STATE:
                found.append(_STATES.get(a.name, a.name))
            case Of.SIZE if a.name == "read_begin":
                found.append("*bounds")
            case Of.SIZE if a.name not in _BOUNDS:
                value = {"splits": "grid.splits", "tiles": "grid.tiles"}[a.name]
                found.append(f"{value} - 1" if split and a.name == "splits" else value)
            case _:
                pass
    if split:
        found = ["split_sums" if one == "states" else one for one in found]
    found.append("config=config")
    known = terms(spec)
    values = _FOUND | {"TERMS": known if known.isdigit() else "tap_terms(groups)"}
    found += [
        f"{a.name}={values[a.name]}" for a in arguments if a.of is Of.CONSTANT and a.name in values
    ]
    return call("launch", found)


# Arguments of recurrences by what launchers call these.
_STATES = {"exit": "leaving", "d_exit": "d_leaving_entry", "sums": "split_sums"}


def _join(spec: OpSpec, arguments: Sequence[Argument]) -> list[str]:
    """The launches that join the gradients of splits, one an input."""
    constants = {a.name: a.value for a in arguments if a.of is Of.CONSTANT}
    own = {"UNIT": "d_input.stride(2)", "CHANNELS": "channels", "ROLE": "role"}
    lines = call(
        "launch",
        [
            "join_splits",
            "dy.shape[0] * (grid.splits - 1) * blocks",
            "edges",
            "featurizer",
            "*operand(d_input, 0, 1)",
            "grid.splits",
            'grid.tiles * config["BLOCK_T"] * config["SEGMENTS"]',
            "config=SUMS",
            *(f"{name}={own.get(name, value)}" for name, value in constants.items()),
        ],
    )
    gradients = ", ".join(f"d_{name}" for name in spec.inputs)
    comma = "," if len(spec.inputs) == 1 else ""
    return [
        f"blocks = -(-channels // {constants['BLOCK_D']})",
        f"for role, d_input in enumerate(({gradients}{comma})):",
        *(_INDENT + line for line in lines),
    ]


def _reduce(spec: OpSpec, plan: Plan) -> list[str]:
    """The launch that adds partial sums."""
    sections = reduce.sections(spec, plan)
    names = reduce.constants(spec, plan)
    values = {"CHANNELS": "channels", "WIDTH": "width", "SHARERS": "sharers(width, config)"}
    partials = ", ".join(p["name"] for p in reduce.partials(spec, plan))
    last = f"section_end({len(sections) - 1}, {', '.join(values[name] for name in names)})"
    lines = call(
        "reduce_partials",
        [
            "sum_partials",
            last,
            f"[{partials}]",
            f"[{', '.join(s.tensor for s in sections)}]",
            *(f"{name}={values[name]}" for name in names),
        ],
    )
    return [f"gradients += {lines[0]}", *lines[1:]]

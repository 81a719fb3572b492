"""Launchers: what a plan does in a call, an action after the other, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from sh2gen.emit import documents, reduce
from sh2gen.emit.config import terms
from sh2gen.emit.text import call, folded, loop, targets, when
from sh2gen.plan.actions import (
    Action,
    Allocate,
    Eager,
    Give,
    Join,
    Launch,
    Recompute,
    Reduce,
    Room,
    When,
)
from sh2gen.plan.arguments import Argument, Of
from sh2gen.plan.kernel import Kernel, Role
from sh2gen.plan.plan import Plan
from sh2gen.spec.language import Sequences
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
    "SPLIT": "grid.splits > 1",
}
_BOUNDS = ("read_begin", "read_end", "write_end")
_OUTPUTS = (Room.ACTIVATION, Room.GRADIENTS)
_WHEN = {When.SPLIT: "grid.splits > 1", When.KEPT: "keep"}


def state_of(spec: OpSpec, plan: Plan) -> list[str]:
    """What kernels take of a state that a call begins with, in order; or of documents."""
    if spec.sequences is Sequences.PACKED:
        return documents.TAKEN
    if spec.state is None:
        return []
    if plan.states:
        return ["history", "entry"]
    first = (kernel for kernel in plan.first_kernels if kernel.role is Role.FORWARD)
    taken = next((kernel.arguments for kernel in first), ())
    return [a.name for a in taken if a.of in (Of.STATE, Of.INDEX)]


def writes_into(spec: OpSpec, plan: Plan) -> bool:
    """Whether launchers can write into tensors that they are given."""
    dense = spec.sequences is Sequences.DENSE
    return spec.context is not None and dense and not plan.saved


def first_steps(spec: OpSpec, plan: Plan) -> tuple[str, str]:
    """The config of the kernel of the first steps forward, from `config` of its role, and what
    steps its tiles have.
    """
    launcher = _Launcher(spec, plan, Role.FORWARD)
    assert launcher.first is not None
    return launcher.early(launcher.first)


def launchers(spec: OpSpec, plan: Plan) -> list[str]:
    """The text of each launcher, one a role; also of those of what only finds the sums of states,
    where ranks send these.
    """
    roles = [_Launcher(spec, plan, role) for role in plan.actions]
    found = [role.text() for role in roles]
    if plan.states and spec.context is not None:
        found += [role.sums_text() for role in roles]
    return found


class _Launcher:
    """The launcher of one role: what its actions need of a call, and a few lines for each."""

    def __init__(self, spec: OpSpec, plan: Plan, role: str) -> None:
        self.spec, self.plan, self.role = spec, plan, role
        self.actions = plan.actions[role]
        kernel = plan.kernel(role)
        assert kernel is not None
        self.kernel: Kernel = kernel
        found = (a.kernel for a in self.actions if isinstance(a, Launch) and a.when is When.PAST)
        self.first = next(found, None)  # of the steps that a past may reach
        self.apart = spec.sequences is Sequences.PACKED
        self.x = spec.inputs[0]
        self.parameters = [p.name for p in spec.parameters]
        # A recurrence needs what is before its first step: it computes whole sequences.
        self.ranges = not plan.states and not self.apart
        self.stored = (*plan.saved, *["states"] * plan.states)
        self.state = state_of(spec, plan)
        self.given = self._given()
        self.decays = spec.filter.decay is not None
        # Chunks of a rank are written into what is of all its chunks.
        self.into = writes_into(spec, plan)

    def _given(self) -> list[str]:
        """What kernels take that is neither an input nor a parameter, and that nothing here
        makes: it comes with the call.
        """
        made = {name for a in self.actions if isinstance(a, Allocate) for name in a.names}
        made |= {*self.spec.inputs, *self.stored, *self.state}
        taken = (a for launch in self.launches for a in launch.kernel.arguments)
        data = (a.name for a in taken if a.of in (Of.ACTIVATION, Of.STATE))
        return list(dict.fromkeys(name for name in data if name not in made))

    @property
    def launches(self) -> list[Launch]:
        return [action for action in self.actions if isinstance(action, Launch)]

    @property
    def reads_stored(self) -> bool:
        """Whether the call is given what another role has stored."""
        made = {name for a in self.actions if isinstance(a, Allocate) for name in a.names}
        taken = {a.name for launch in self.launches for a in launch.kernel.arguments}
        return self.role == Role.BACKWARD or bool(taken.intersection(self.stored) - made)

    # ---- the function ---------------------------------------------------------------------------

    def text(self) -> str:
        (give,) = (action for action in self.actions if isinstance(action, Give))
        arguments = [f"{name}: Tensor" for name in self.given if name in self.kernel.program.loads]
        arguments += ["inputs: Sequence[Tensor]", "parameters: Sequence[Tensor]"]
        arguments += ["saved: Sequence[Tensor]"] * self.reads_stored
        arguments += ["state: Sequence[Tensor]"] * bool(self.state)
        arguments += [f"{n}: Tensor" for n in self.given if n not in self.kernel.program.loads]
        if self.ranges:
            arguments += ["context: int = 0", "begin: int = 0", "end: int | None = None"]
        arguments += ["out: Sequence[Tensor] | None = None"] * self.into
        if any(a.when is When.KEPT for a in self.actions if isinstance(a, Allocate)):
            arguments.append("keep: bool = True")
        arguments += ["first_group: int = 0", "groups_in_all: int | None = None"] * self.decays
        doc = textwrap.indent(f'"""{give.doc}', _INDENT)
        doc += f"\n{_INDENT}" * ("\n" in give.doc) + '"""'
        head = [f"def launch_{self.role}(", *(f"{_INDENT}{a}," for a in arguments)]
        lines = [*head, ") -> list[Tensor]:", folded(doc)]
        return "\n".join([*lines, *(_INDENT + line for line in self.body())])

    def sums_text(self) -> str:
        """The launcher of what finds what every tile of a sequence adds to the state, or backward
        to the adjoint state.
        """
        kernel = next(a.kernel for a in self.launches if a.when is When.SPLIT)
        x, lag = self.x, self.spec.lag
        loaded = kernel.program.loads
        others = [name for name in loaded if name not in self.spec.inputs]
        arguments = [f"{name}: Tensor" for name in others]
        arguments += ["inputs: Sequence[Tensor]", "parameters: Sequence[Tensor]"]
        arguments += ["history: Tensor"] * bool(lag)
        adjoint = "adjoint " * (self.role == Role.BACKWARD)
        head = [f"def launch_{self.role}_sums(", *(f"{_INDENT}{a}," for a in arguments)]
        doc = f'    """[What every tile adds to the {adjoint}state]."""'
        names, size = targets(self.spec.inputs), self.spec.filter.state_size
        names = f"({names})" if len(self.spec.inputs) > 1 else names
        lines = [
            f"{names}, unit = common_unit(unpack(inputs))",
            f"{targets(self.parameters)} = (p.contiguous() for p in parameters)",
            *(f"{name} = dense({name})" for name in others),
            *["history = history.contiguous()"] * bool(lag),
            f"channels, groups = {x}.shape[CHANNEL], {self.parameters[0]}.shape[0]",
            "width = channels // groups",
            f'config = configs_of({x}, channels, groups)["{kernel.role}"]',
            f"steps = {x}.shape[TIME]",
            "bounds = (0, steps, steps)",
            self.grid(kernel, kernel.grid),
            f"step = stride_step(config, ({targets(loaded)}), grid.tiles)",
            f"states = allocate_states({x}, channels, steps, config, {size}, True)",
            *when("grid.programs", self.launch(kernel, kernel.name, kernel.arguments)),
            "return [states]",
        ]
        return "\n".join([*head, ") -> list[Tensor]:", doc, *(_INDENT + line for line in lines)])

    def body(self) -> list[str]:
        lines = self.prologue()
        first = [a for a in self.actions if isinstance(a, Allocate) and a.room in _OUTPUTS]
        for action in first:  # strides of all tensors decide what is launched
            lines += self.lines(action)
        lines += self.selection()
        for later in self.actions:
            if later not in first:
                lines += self.lines(later)
        return lines

    def prologue(self) -> list[str]:
        """Tensors as kernels read them, sizes, the config and the grid."""
        names, x = targets(self.spec.inputs), self.x
        names = f"({names})" if len(self.spec.inputs) > 1 else names
        dense = [n for n in self.given if n in self.kernel.program.loads]
        others = [n for n in self.given if n not in dense]
        lines = [
            f"{names}, unit = common_unit(unpack(inputs))",
            f"{targets(self.parameters)} = (p.contiguous() for p in parameters)",
            *(f"{name} = dense({name})" for name in dense),
            *(f"{name} = {name}.contiguous()" for name in others),
        ]
        if self.reads_stored and self.stored:
            lines.append(f"{targets(self.stored)} = saved")
        if self.state:
            lines.append(f"{targets(self.state)} = (tensor.contiguous() for tensor in state)")
        lines += [
            f"channels, groups = {x}.shape[CHANNEL], {self.parameters[0]}.shape[0]",
            "width = channels // groups",
            *self.ladder(),
            f"configs = configs_of({x}, channels, groups)",
            f'config = configs["{self.kernel.role}"]',
        ]
        if self.first is not None:
            config, unit = self.early(self.first)
            lines += [f"early = {config}", f"unit_steps = {unit}"]
            lines += [f"first, steps, bounds = segment({x}, context, begin, end, unit_steps)"]
        elif self.ranges:
            lines += [f"first, steps, bounds = segment({x}, context, begin, end, {self.unit()})"]
        elif self.apart:
            # As many steps of a vector as the row has, so that bounds are even if it is.
            lines += [f"steps = {x}.shape[TIME]", "apart = 8 * sources.shape[0] - -steps % 8"]
            lines += ["bounds = (0, apart, apart)"]
        else:
            lines += [f"steps = {x}.shape[TIME]", "bounds = (0, steps, steps)"]
        return [*lines, self.grid(self.kernel, self.kernel.grid)]

    def ladder(self) -> list[str]:
        """Where on a ladder of decays the groups are."""
        rungs = "rungs_of(groups, first_group, groups_in_all)"
        lines = [f"rungs = {rungs}", "first_rate, rung_step = ladder_of(first_group, rungs)"]
        return lines * self.decays

    def unit(self) -> str:
        """The steps of which a range that ends within its segment has whole multiples."""
        rows = ["SEGMENTS"] * any(a.name == "SEGMENTS" for a in self.kernel.arguments)
        return " * ".join(f'config["{n}"]' for n in ("BLOCK_T", *rows * self.sums))

    @property
    def sums(self) -> bool:
        """Whether the kernel writes partial sums."""
        return any(a.of is Of.PARTIAL for a in self.kernel.arguments)

    def grid(self, kernel: Kernel, grid: Callable[..., object]) -> str:
        # A range that ends before its segment does is whole segments of a stream, for its sums.
        sums = any(a.of is Of.PARTIAL for a in kernel.arguments)
        whole = ", bounds[1] > bounds[2]" * (sums and self.ranges)
        steps = "apart" if self.apart else "steps"
        sizes = f"{self.x}.shape[0], {steps}, channels, width, config{whole}"
        return f"grid = {grid.__name__}({sizes})"

    def selection(self) -> list[str]:
        """The unit of strides; and the config and grid of the first variant that suits a call, if
        one does.
        """
        program = self.kernel.program
        given = [n for n in program.loads if n not in self.spec.inputs]
        made = (a for a in self.actions if isinstance(a, Allocate) and a.room in _OUTPUTS)
        outputs = (name for a in made for name in a.names)
        tensors = (*self.spec.inputs, *given, *outputs)
        lines = [f"tensors = ({targets(tensors)})"]
        lines.append("step = stride_step(config, tensors, grid.tiles)")
        if self.first is not None:
            lines += self.parts(self.first)
        return [*lines, *self.variants(self.kernel)]

    def early(self, first: Kernel) -> tuple[str, str]:
        """As `first_steps`, of any role."""
        reach = self.spec.lag + (self.spec.filter.length or 1) - 1
        config = f"{first.narrowed.__name__}(config, {reach})" if first.narrowed else "config"
        # Later steps begin at whole lines of memory, of 128 bytes.
        return config, f"max(64, {self.unit().replace('config', 'early')})"

    def parts(self, first: Kernel) -> list[str]:
        """Which steps are those of a kernel for the first ones, up to `edge`, and its grid."""
        x, reach = self.x, self.spec.lag + (self.spec.filter.length or 1) - 1
        sizes = f"{x}.shape[0], %s, channels, width, %s%s"
        sums = ", %s[1] > %s[2]" if self.sums else ""
        own, other = (sums % (name, name) if sums else "" for name in ("early_bounds", "bounds"))
        grid = self.kernel.grid.__name__
        return [
            *['stride_step(early, tensors, early["TILES"])'] * bool(first.narrowed),
            f"reached = max(0, {reach} - context - begin)",
            "edge = min(steps, -(-reached // unit_steps) * unit_steps)",
            f"early_bounds = segment({x}, context, begin, begin + edge, unit_steps)[2]",
            f"early_grid = {grid}({sizes % ('edge', 'early', own)})",
            f"bounds = segment({x}, context, begin + edge, end, {self.unit()})[2]",
            f"grid = {grid}({sizes % ('steps - edge', 'config', other)})",
        ]

    def variants(self, kernel: Kernel) -> list[str]:
        """The config and grid of the first variant that suits a call, in place of the kernel's."""
        lines: list[str] = []
        for number, variant in enumerate(kernel.variants):
            own = variant.name
            begin = "begin" + " + edge" * (self.first is not None) if self.ranges else "0"
            suits = f"{variant.suits}(tensors, unit, step, {begin}, bounds, {own})"
            still = f'config is configs["{kernel.role}"] and ' * (number > 0)
            lines += [
                f'{own} = configs.get("{kernel.name}_{own}")',
                f"if {still}{own} is not None and {suits}:",
                f"{_INDENT}config = {own}",
                _INDENT
                + self.grid(kernel, variant.grid).replace(
                    " steps,", " steps," if self.first is None else " steps - edge,"
                ),
            ]
        return lines

    def next(self, kernel: Kernel) -> list[str]:
        """The config and grid of a kernel that is launched after the first of a call."""
        if kernel is self.kernel:
            return []
        config = f'config = configs["{kernel.role}"]'
        return [config, self.grid(kernel, kernel.grid), *self.variants(kernel)]

    # ---- the actions ----------------------------------------------------------------------------

    def lines(self, action: Action) -> list[str]:
        match action:
            case Allocate():
                return self.allocation(action)
            case Recompute(name=name, role=role):
                state = ", state" * bool(self.state)
                made = next(a.names for a in self.plan.actions[role] if isinstance(a, Give))
                call = f"launch_{role}(inputs, parameters{state})[{made.index(name)}]"
                return [f"if not {name}.numel():", f"{_INDENT}{name} = {call}"]
            case Launch(kernel=kernel, when=When.PAST):
                found = self.launch(kernel, kernel.name, kernel.arguments)
                return when("early_grid.programs", found)
            case Launch(kernel=kernel, when=When.SPLIT):
                found = self.launch(kernel, kernel.name, kernel.arguments, split=True)
                return when("grid.programs and grid.splits > 1", found)
            case Launch(kernel=kernel):
                return [*self.next(kernel), *self.chosen(kernel)]
            case Join(arguments=arguments):
                return when("grid.programs and grid.splits > 1", self.join(arguments))
            case Reduce():
                return self.reduce(action)
            case Give(names=("gradients",)):
                return ["return gradients"]
            case Give(names=names):
                return [f"return [{', '.join(map(self.result, names))}]"]
            case Eager():
                raise AssertionError(f"{self.plan.name}: launchers run kernels alone")

    def allocation(self, action: Allocate) -> list[str]:
        names, x, when = action.names, self.x, _WHEN.get(action.when, "")
        match action.room:
            case Room.ACTIVATION:
                if self.into:
                    (name,) = names
                    return [f"{name} = allocate({x}, steps, channels) if out is None else out[0]"]
                return [f"{name} = allocate({x}, steps, channels)" for name in names]
            case Room.GRADIENTS:
                new = "[allocate(x, steps) for x in inputs]"
                return [
                    f"gradients = {new if not self.into else f'{new} if out is None else [*out]'}",
                    f"{targets(names)} = unpack(gradients)",
                    f"d_unit = {names[0]}.stride(2)",
                ]
            case Room.STATES:
                size = self.spec.filter.state_size
                steps = "apart" if self.apart else "steps"
                sizes = f"{x}, channels, {steps}, config, {size}, {when or 'True'}"
                return [f"{name} = allocate_states({sizes})" for name in names]
            case Room.LIKE:
                dtype = "" if action.io else ", dtype=torch.float32"
                return [f"{name} = torch.empty_like({action.like}{dtype})" for name in names]
            case Room.FLOAT32 if self.first is not None:
                return self.sums_of_both(action)
            case Room.FLOAT32:
                sizes = ", ".join(" * ".join(map(self.size, factors)) for factors in action.shape)
                shape = f"({sizes}) if {when} else 0" if when else f"({sizes})"
                return [f"{n} = {x}.new_empty({shape}, dtype=torch.float32)" for n in names]

    def sums_of_both(self, action: Allocate) -> list[str]:
        """Room for the partial sums of the first steps, and behind them for those of others."""
        (name,), (splits, *others) = action.names, action.shape
        count = " * ".join(map(self.size, splits))
        sizes = ", ".join(" * ".join(map(self.size, factors)) for factors in others)
        return [
            f"{name}_first = {count.replace('grid.', 'early_grid.')}",
            f"{name} = {self.x}.new_empty(({name}_first + {count}, {sizes}), dtype=torch.float32)",
        ]

    def result(self, name: str) -> str:
        """A tensor that is returned."""
        return "*gradients" if name == "gradients" else name

    def size(self, factor: str | int) -> str:
        """A size of a launch as launchers call it."""
        if factor in ("splits", "sums", "columns"):
            return f"grid.{factor}"
        return f"{self.x}.shape[0]" if factor == "batch" else str(factor)

    def chosen(self, kernel: Kernel) -> list[str]:
        """The launch of a kernel, or of the variant that suits the call."""
        lines = when("grid.programs", self.launch(kernel, kernel.name, kernel.arguments))
        for variant in reversed(kernel.variants):
            name = f"{kernel.name}_{variant.name}"
            other = self.launch(kernel, name, variant.arguments)
            first = when(f"grid.programs and config is {variant.name}", other)
            lines = [*first, f"el{lines[0]}", *lines[1:]]
        return lines

    def launch(
        self, kernel: Kernel, name: str, arguments: Sequence[Argument], split: bool = False
    ) -> list[str]:
        """One launch, from what the kernel takes; of all splits of a sequence but one, if so
        asked.
        """
        first = kernel is self.first
        later = self.first is not None and not first
        programs = "grid.programs"
        if split:
            programs += " // grid.splits * (grid.splits - 1)"
        found = [f"{self.spec.op}_{name}", programs]
        for a in arguments:
            match a.of:
                case Of.ACTIVATION:
                    begin = "first" if a.name in self.spec.inputs else "begin"
                    begin = "0" if a.name in kernel.program.stores or not self.ranges else begin
                    if later:
                        begin = {"0": "edge"}.get(begin, f"{begin} + edge")
                    found.append(f"*operand({a.name}, {begin}, step)")
                case Of.PARTIAL if later:
                    found.append(f"{a.name}[{a.name}_first:]")
                case Of.PARAMETER | Of.PARTIAL:
                    found.append(a.name)
                case Of.STATE | Of.INDEX | Of.BITS:
                    found.append("split_sums" if split and a.name == "states" else a.name)
                case Of.SIZE if a.name == "read_begin":
                    found.append("*bounds")
                case Of.SIZE if a.name not in _BOUNDS:
                    known = {
                        "splits": "grid.splits",
                        "tiles": "grid.tiles",
                        "first": str(int(split)),
                    }
                    value = known.get(a.name, a.name)
                    found.append(f"{value} - 1" if split and a.name == "splits" else value)
                case _:
                    pass
        found.append("config=config")
        count = terms(self.spec)
        values = _FOUND | {"TERMS": count if count.isdigit() else "tap_terms(groups)"}
        rings = (name for name in self.state if name in ("tails", "z"))
        values |= {f"{name.upper()}_SLOTS": f"{name}.shape[1]" for name in rings}
        if self.apart:
            values |= {"EVEN": "step == 8 and even(bounds) and aligned(tensors)"}
        constants = (a.name for a in arguments if a.of is Of.CONSTANT and a.name in values)
        found += [f"{name}={values[name]}" for name in constants]
        if first:  # of its own steps
            changes = (
                ("grid.", "early_grid."),
                ("bounds", "early_bounds"),
                ("=config", "=early"),
            )
            for old, new in changes:
                found = [text.replace(old, new) for text in found]
        return call("launch", found)

    def join(self, arguments: Sequence[Argument]) -> list[str]:
        """The launches that join the gradients of splits, one an input."""
        constants = {a.name: a.value for a in arguments if a.of is Of.CONSTANT}
        own = {"UNIT": "d_input.stride(2)", "CHANNELS": "channels", "ROLE": "role"}
        lines = call(
            "launch",
            [
                "join_splits",
                f"{self.x}.shape[0] * (grid.splits - 1) * blocks",
                "edges",
                "featurizer",
                "*operand(d_input, 0, 1)",
                "grid.splits",
                'grid.tiles * config["BLOCK_T"] * config["SEGMENTS"]',
                "config=SUMS",
                *(f"{name}={own.get(name, value)}" for name, value in constants.items()),
            ],
        )
        gradients = ", ".join(f"d_{name}" for name in self.spec.inputs)
        comma = "," if len(self.spec.inputs) == 1 else ""
        return [
            f"blocks = -(-channels // {constants['BLOCK_D']})",
            *loop(f"role, d_input in enumerate(({gradients}{comma}))", lines),
        ]

    def reduce(self, action: Reduce) -> list[str]:
        """The launch that adds partial sums."""
        sections = reduce.sections(self.spec, self.plan)
        assert action.reductions == self.plan.reductions, "one kernel adds all partial sums"
        names = reduce.constants(self.spec, self.plan)
        values = {"CHANNELS": "channels", "WIDTH": "width", "SHARERS": "sharers(width, config)"}
        partials = ", ".join(p["name"] for p in reduce.partials(self.spec, self.plan))
        last = f"section_end({len(sections) - 1}, {', '.join(values[name] for name in names)})"
        lines = call(
            "reduce_partials",
            [
                "sum_partials",
                last,
                f"[{partials}]",
                f"[{', '.join(reduce.gradients(self.spec, self.plan))}]",
                f"[{', '.join(name for s in sections for name in s.sizes)}]",
                *(f"{name}={values[name]}" for name in names),
            ],
        )
        return [f"gradients += {lines[0]}", *lines[1:]]

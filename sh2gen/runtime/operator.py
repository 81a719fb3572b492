"""Generated files as callables: `Operator` for users, runners for the verifier."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn

from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import read_generated
from sh2gen.build.load_module import forget_ops, load_module
from sh2gen.build.loaded import text_of
from sh2gen.emit.words import class_name
from sh2gen.graph.reference import reference
from sh2gen.runtime.kernels import Kernels
from sh2gen.runtime.ranks import simulated
from sh2gen.spec.decode import spec_from_dict
from sh2gen.spec.language import Sequences
from sh2gen.spec.operator import OpSpec

# What a call needs of the past: a generated file's own named tuple, or None where it begins.
State = tuple[Tensor, ...] | None

_ALL_GROUPS = {"first_group": 0, "groups_in_all": None}  # of the ladder of decays
_MOST_RANKS = 4  # that are simulated, if nobody says how many
_PLAIN = threading.Lock()  # for the number of those that want plain PyTorch


class Operator:
    """A compiled operator: one generated file, imported.

    Attributes:
        spec: what it computes, at one width; the file computes it at any.
        path: the generated file.
        layout: "BLD" for activations (B, L, D), "BDL" for (B, D, L).
        plan: algorithm/layout/what forward saves.
        namespace: the imported module.
    """

    def __init__(
        self, path: Path, *, edited: bool = False, width: tuple[int, int] | None = None
    ) -> None:
        """Execute the file, once it is known that sh2gen wrote it: `read_generated`.

        Args:
            width: channels and filter groups, instead of the file's own.

        Raises:
            TypeError: a width that is not these two.
        """
        if width is not None and not (isinstance(width, tuple | list) and len(width) == 2):
            raise TypeError(
                f"width must be channels and filter groups, as (1920, 128), not {width!r}"
            )
        self.path = path
        self._edited, self._width = edited, width
        text = read_generated(path, edited=edited)
        try:
            self._bind(load_module(path, interpret=False, text=text))
        except AttributeError as error:
            raise Sh2genError(
                "B005", f"{path} lacks what a generated file has: {error.name}"
            ) from error

    def _bind(self, namespace: ModuleType) -> None:
        self.namespace = namespace
        self.spec: OpSpec = spec_from_dict(namespace.SPEC)
        if self._width is not None:
            self.spec = self.spec.with_width(*self._width)
        self.plan: str = namespace.PLAN
        self.layout: str = namespace.LAYOUT

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: the same module where it is loaded, else the file anew."""
        where = str(self.path.absolute()), self.namespace.__name__
        return _restored, (*where, self._edited, self._width)

    def __call__(self, *inputs: Tensor, **parameters: Any) -> Any:
        """y of the inputs (`spec.inputs`, or one tensor of packed features), differentiable; and
        the state after them, if the spec says `state: {final: true}`.

        Args:
            inputs: (B, L, D) or (B, D, L) as `layout` says; packed features have
                len(spec.inputs) D channels. bfloat16, float16 or float32; float64 on a CPU.
            parameters: every tensor of `spec.parameters` by name, in its shape; float32 is best.
                With `state: {initial: true}` also `state`, that before these steps, or None. With
                `sequences: packed` also `cu_seqlens` and `max_length`, as functions of the file
                take them. Of a slice of the channels also `first_group` and `groups_in_all`, as
                `module` has them.

        Raises:
            TypeError, ValueError: naming the argument and what was expected of it.
        """
        takes = self.spec.state is not None and self.spec.state.initial
        more = ["state"] * takes
        if self.spec.sequences is Sequences.PACKED:
            more += ["cu_seqlens", "max_length"]
        state = {name: parameters.pop(name, None) for name in more}
        ladder = self._ladder(parameters)
        values = self._values(inputs, parameters)
        packed = "" if len(inputs) == len(self.spec.inputs) else "_packed"
        function = getattr(self.namespace, self.spec.op + packed)
        return function(*inputs, *values, **state, **ladder)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Within it, calls of this operator and of its modules are plain PyTorch on any device:
        slower, of more memory, and for exporters and derivatives that library ops do not have.

        In every thread: PyTorch computes gradients in threads of its own.
        """
        names = vars(self.namespace)
        with _PLAIN:
            names["PLAIN"] += 1
        try:
            yield
        finally:
            with _PLAIN:
                names["PLAIN"] -= 1

    def use(self, config: Mapping[str, Mapping[str, int]]) -> None:
        """Run kernels of this width with a config, by kernel, from now on."""
        names = vars(self.namespace)
        names["CONFIGS"] = {("", self.spec.channels, self.spec.filter.groups): config}
        for table in ("CHOSEN", "TAPES", "RECENT"):
            names.get(table, {}).clear()

    def module(
        self,
        channels: int | None = None,
        groups: int | None = None,
        *,
        first_group: int = 0,
        groups_in_all: int | None = None,
        group: Any = None,
        device: torch.device | str | None = None,
    ) -> nn.Module:
        """A fresh nn.Module with its own float32 parameters, called like the operator.

        A rank that has 512 of 4096 channels, 32 of the 256 groups that share a ladder of decays:

        operator = sh2gen.operator("hyena_mr", channels=512, groups=32)
        layer = operator.module(first_group=32 * rank, groups_in_all=256)

        Args:
            channels: D, of inputs and output (B, L, D) or (B, D, L); absent: the operator's own.
            groups: G filter groups, which divide D; absent: as wide as the operator's own.
            first_group, groups_in_all: of a filter that decays, which groups these are:
                first_group .. first_group + G - 1 of groups_in_all, each with the decay that it
                has among all. Absent: they are all.
            group: of an operator with `context`, over whose ranks sequences are split: a process
                group of torch.distributed, or a DeviceMesh of one dimension. Absent: they are
                whole.

        Returns:
            A module whose parameters have the shapes of `spec.parameters` at this width.

        Raises:
            TypeError: what should be a whole number is none, a slice of a ladder is asked of an
                operator that has none, or a group of one without `context`.
            Sh2genError: S006, without `groups`, of channels that are no whole groups.
            ValueError: the groups do not divide the channels, or are no slice of the ladder.
        """
        kind = getattr(self.namespace, class_name(self.spec.op))
        ladder = self._ladder({"first_group": first_group, "groups_in_all": groups_in_all})
        over = {} if group is None else {"group": group}
        if over and self.spec.context is None:
            raise TypeError(
                f"{self.spec.op} is not split over ranks: write `context: {{ranks: 8}}`, say, in "
                "its op.yaml"
            )
        width = self.spec.width_of(channels, groups)
        made: nn.Module = kind(*width, **ladder, **over, device=device)
        return made

    def reference(self, *inputs: Tensor, **parameters: Any) -> Tensor:
        """The same operator in float64 by FFT, from the spec and the width of the call alone: the
        meaning of a call.

        Args:
            inputs, parameters: as of a call, but without a state. `cu_seqlens` are read.

        Raises:
            TypeError, ValueError: as a call does.
        """
        ladder, ends = self._ladder(parameters), None
        if self.spec.sequences is Sequences.PACKED:
            parameters.pop("max_length", None)
            ends = parameters.pop("cu_seqlens", None)
        values = self._values(inputs, parameters)
        self.namespace.check(inputs, values)
        if ends is not None:
            steps = inputs[0].shape[self.namespace.TIME]
            self.namespace.check_documents(inputs[0], ends, steps)
            ends = ends[1:].tolist()
        channels, groups = self.namespace.channels_of(inputs), values[0].shape[0]
        if ladder:
            self.namespace.rungs_of(groups, **ladder)
        whole = ladder.get("groups_in_all") or groups
        # The rungs of a slice are those of the whole, whose channels the tensors need not have.
        spec = self.spec.with_width(channels // groups * whole, whole)
        shapes = {p.name: p.shape[1:] for p in spec.parameters}
        parameters = {n: parameters[n].reshape(-1, *shape) for n, shape in shapes.items()}
        if len(inputs) == 1 and len(self.spec.inputs) > 1:
            inputs = self.namespace.unpack(inputs)
        canonical = {
            name: x if self.layout == "BDL" else x.transpose(1, 2)
            for name, x in zip(self.spec.inputs, inputs, strict=True)
        }
        first = ladder.get("first_group", 0)
        mine = range(first, first + groups)
        y = reference(spec, canonical, parameters, groups=mine, ends=ends)
        return y if self.layout == "BDL" else y.transpose(1, 2)

    def _ladder(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Taken out of the arguments: which groups of a ladder of decays are meant, as functions
        of the file take it; nothing of an operator without a ladder.

        Raises:
            TypeError: a slice of a ladder where there is none.
        """
        asked = {n: arguments.pop(n, none) for n, none in _ALL_GROUPS.items()}
        if self.spec.filter.decay is not None:
            return asked
        given = [name for name, value in asked.items() if value != _ALL_GROUPS[name]]
        if given:
            raise TypeError(
                f"{self.spec.op}: {' and '.join(given)} said of a filter that does not decay: its "
                "groups are all alike, so leave that out"
            )
        return {}

    def _values(self, inputs: tuple[Tensor, ...], parameters: dict[str, Tensor]) -> list[Tensor]:
        """The parameters in order, once the numbers and names of arguments are right."""
        names = [p.name for p in self.spec.parameters]
        if set(parameters) != set(names):
            raise TypeError(
                f"{self.spec.op}: expected parameters {', '.join(names)}, "
                f"got {', '.join(parameters) or 'none'}"
            )
        n = len(self.spec.inputs)
        if len(inputs) not in {1, n}:
            packed = " or one tensor of packed features" if n > 1 else ""
            raise TypeError(
                f"{self.spec.op}: expected {', '.join(self.spec.inputs)}{packed}, "
                f"got {len(inputs)} inputs"
            )
        return [parameters[name] for name in names]

    def __repr__(self) -> str:
        names = ", ".join((*self.spec.inputs, *(p.name for p in self.spec.parameters)))
        return f"<sh2gen.Operator {self.spec.op}({names}) {self.plan} from {self.path}>"


def _restored(
    path: str, name: str, edited: bool, width: tuple[int, int] | None = None
) -> Operator:
    """The operator of a module in this process, or else of the file that it was made of.

    Raises:
        Sh2genError: B005 if the file is not there any more, or another.
    """
    try:
        namespace = importlib.import_module(name)
    except ModuleNotFoundError:
        operator = Operator(Path(path), edited=edited, width=width)
        if text_of(operator.namespace.__name__) != text_of(name):
            raise Sh2genError(
                "B005", f"{path} has changed since an operator of it was pickled"
            ) from None
        return operator
    operator = Operator.__new__(Operator)
    operator.path, operator._edited, operator._width = Path(path), edited, width
    operator._bind(namespace)
    return operator


class OperatorRunner:
    """Runs a compiled operator as users do: plain PyTorch on a CPU, kernels on a GPU."""

    def __init__(self, operator: Operator, name: str, ranks: int | None = None) -> None:
        self.name = name
        context = operator.spec.context
        # Threads of one process: on a GPU all would wait for its one thread of autograd.
        several = min(_MOST_RANKS, context.ranks) if ranks is None and context else ranks or 0
        self.ranks = several if context and name == "eager" else 0
        self.operator = operator
        self.layout = operator.layout
        self.exactly_causal = not operator.plan.startswith("fft/")
        self._ladder: dict[str, Any] = {}

    def of_documents(self, cu_seqlens: Tensor) -> Self:
        """The same way of running, of one row that holds documents."""
        part = copy(self)
        part._ladder = self._ladder | {"cu_seqlens": cu_seqlens}
        return part

    def sliced(self, spec: OpSpec, groups: range) -> tuple[Self, bool]:
        """The same way of running, of some groups of a filter that decays; not of the same bits:
        another width may have another config, and other products in plain PyTorch.
        """
        part = copy(self)
        part._ladder = {"first_group": groups.start, "groups_in_all": spec.filter.groups}
        return part, False

    def forward(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self._output(*inputs.values(), **parameters)

    def forward_packed(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> Tensor:
        with torch.no_grad():
            return self._output(inputs["features"], **parameters)

    def _output(self, *inputs: Tensor, **parameters: Tensor) -> Tensor:
        """y alone, also of an operator that gives a state beside it."""
        found = self.operator(*inputs, **parameters, **self._ladder)
        return found if isinstance(found, Tensor) else found[0]

    def chunk(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], state: State
    ) -> tuple[Tensor, State]:
        """Some steps after a state, and the state after them."""
        function = getattr(self.operator.namespace, self.operator.spec.op)
        tensors = (*inputs.values(), *parameters.values())
        y, leaving = function(*tensors, state=state, **self._ladder)
        return y, leaving

    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        weights = {name: x.detach().requires_grad_() for name, x in parameters.items()}
        y = self._output(*leaves.values(), **weights)
        named = leaves | weights
        return dict(zip(named, torch.autograd.grad(y, list(named.values()), dy), strict=True))

    def over_ranks(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """y over simulated ranks, and the gradients that each has, of inputs of all ranks."""
        names, size = self.operator.namespace, self.ranks
        function = getattr(names, f"{self.operator.spec.op}_over_ranks")
        length = dy.shape[names.TIME]

        def one(rank: int, group: str) -> tuple[Tensor, list[Tensor], list[Tensor]]:
            own = [names.shard(x, rank, size).requires_grad_() for x in inputs.values()]
            weights = [x.detach().clone().requires_grad_() for x in parameters.values()]
            with torch.enable_grad():  # this is another thread
                y = function(own, weights, group, length=length, **self._ladder)
                y = y if isinstance(y, Tensor) else y[0]
                leaves, above = [*own, *weights], names.shard(dy, rank, size)
                found = torch.autograd.grad(y, leaves, above, materialize_grads=True)
            return y.detach(), list(found[: len(own)]), list(found[len(own) :])

        every = simulated(names, size, one)
        joined = [
            names.unshard(list(parts)) for parts in zip(*(x for _, x, _ in every), strict=True)
        ]
        of_inputs = dict(zip(inputs, joined, strict=True))
        grads = [of_inputs | dict(zip(parameters, own, strict=True)) for _, _, own in every]
        return names.unshard([y for y, _, _ in every]), grads

    prefills = True

    def initial_state(
        self, spec: OpSpec, batch: int, dtype: torch.dtype, steps: int, draft: bool
    ) -> Any:
        how = {"steps": steps, "draft": draft, "dtype": dtype}
        how["device"] = "cuda" if self.name == "cuda" else "cpu"
        return self.operator.namespace.initial_state(batch, spec.channels, **how)

    def decode(
        self,
        inputs: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        state: Any,
        slots: Tensor | None = None,
    ) -> Tensor:
        given, weights = list(inputs.values()), list(parameters.values())
        y: Tensor = self.operator.namespace.decode(given, weights, state, slots, **self._ladder)
        return y

    def prefill(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], state: Any
    ) -> Tensor:
        given, weights = list(inputs.values()), list(parameters.values())
        y: Tensor = self.operator.namespace.prefill(given, weights, state, **self._ladder)
        return y


class InterpreterRunner:
    """Runs the kernels of a generated file on CPU tensors under Triton's interpreter."""

    name = "interpreter"
    exactly_causal = True

    def __init__(self, path: Path) -> None:
        self.namespace = load_module(path, interpret=True)
        forget_ops(self.namespace)  # launchers are all that it runs
        self.layout: str = self.namespace.LAYOUT
        self._ladder: dict[str, Any] = {}
        self._cu_seqlens: Tensor | None = None

    def of_documents(self, cu_seqlens: Tensor) -> Self:
        """The same kernels, of one row that holds documents."""
        part = copy(self)
        part._cu_seqlens = cu_seqlens
        return part

    def sliced(self, spec: OpSpec, groups: range) -> tuple[Self, bool]:
        """The same kernels with the same config, of some groups of a filter that decays; of the
        same bits if a tap has as many operands.
        """
        part = copy(self)
        part._ladder = {"first_group": groups.start, "groups_in_all": spec.filter.groups}
        here, names, total = torch.empty(0), self.namespace, spec.filter.groups
        configs = names.configs_of(here, spec.channels, total)
        names.CHOSEN[here.device, len(groups) * spec.group_width, len(groups)] = configs
        terms = getattr(names, "tap_terms", None)
        return part, terms is None or terms(len(groups)) == terms(total)

    def forward(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        return self._outputs(list(inputs.values()), parameters)[0]

    def forward_packed(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> Tensor:
        return self._outputs([inputs["features"]], parameters)[0]

    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        tensors, weights = list(inputs.values()), [x.detach() for x in parameters.values()]
        saves, state = "/save-" in self.namespace.PLAN, self._zero_state(tensors)
        more = state | self._ladder
        saved = self.namespace.launch_forward(tensors, weights, **more)[1:] if saves else []
        modes = hasattr(self.namespace, "stateful_op")
        after = {"d_leaving": torch.zeros_like(saved.pop())} if modes else {}
        results = self.namespace.launch_backward(dy, tensors, weights, saved, **more, **after)
        return dict(zip((*inputs, *parameters), results, strict=False))

    def chunk(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], state: State
    ) -> tuple[Tensor, State]:
        """As the operator computes some steps after a state, on these kernels."""
        n = self.namespace
        given, weights = list(inputs.values()), list(parameters.values())
        before: Any = n.zero_state_like(given[0]) if state is None else state
        if not given[0].shape[n.TIME]:
            return n.allocate(given[0], 0), before
        launched: Any = Kernels.apply
        past = n.past_for_kernels(before, given[0])
        ladder = (self._ladder or _ALL_GROUPS) if hasattr(n, "rungs_of") else {}
        y, *modes = launched(n, ladder, len(past), *past, *given, *weights)
        if not modes and past:
            y = n.with_gradient_of_past(y, given, weights, before, **ladder)
        return y, n.state_after(given, weights, before, None, *modes, **ladder)

    def _outputs(self, inputs: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> list[Tensor]:
        for x in inputs:
            if x.dtype == torch.bfloat16:
                raise Sh2genError("V003", "Triton's interpreter computes bfloat16 wrongly")
        more, weights = self._zero_state(inputs) | self._ladder, list(parameters.values())
        found: list[Tensor] = self.namespace.launch_forward(inputs, weights, **more)
        return found

    def _zero_state(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """What launchers that take a state are told of sequences that begin; or of documents."""
        n = self.namespace
        if hasattr(n, "documents_of"):
            steps = inputs[0].shape[n.TIME]
            ends = self._cu_seqlens
            ends = torch.tensor([0, steps], dtype=torch.int32) if ends is None else ends
            return {"state": n.documents_on_gpu(ends, steps)}
        if not hasattr(n, "zero_state_like"):
            return {}
        x = n.unpack(inputs)[0]
        past = n.past_for_kernels(n.zero_state_like(x), x)
        return {"state": past} if past else {}

    prefills = False  # library ops are not there

    def initial_state(
        self, spec: OpSpec, batch: int, dtype: torch.dtype, steps: int, draft: bool
    ) -> Any:
        how = {"steps": steps, "draft": draft, "dtype": dtype}
        return self.namespace.initial_state(batch, spec.channels, **how)

    def decode(
        self,
        inputs: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        state: Any,
        slots: Tensor | None = None,
    ) -> Tensor:
        given, weights = list(inputs.values()), list(parameters.values())
        decays = hasattr(self.namespace, "rungs_of")
        ladder = (self._ladder or _ALL_GROUPS) if decays else {}
        y: Tensor = self.namespace.launch_decode(given, weights, state, slots, **ladder)
        return y

    def prefill(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], state: Any
    ) -> Tensor:
        raise NotImplementedError("prompts are computed step by step here")

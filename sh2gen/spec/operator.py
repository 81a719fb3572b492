"""A frozen `OpSpec`: what the user asked for, and makes sense."""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, is_dataclass, replace
from typing import Any

from sh2gen.base.errors import Sh2genError
from sh2gen.spec.language import (
    Description,
    Sequences,
    StateSpec,
    language_fields,
    plain_value,
)
from sh2gen.spec.rules import problems


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec(Description):
    """A whole operator; `language` says what it computes.

    Building one that makes no sense raises Sh2genError, by whatever way it is built.
    """

    def __post_init__(self) -> None:
        dense = self.sequences is Sequences.DENSE
        if self.context is not None and self.state is None and dense:
            # Which chunks take and give; those of documents see the steps before them.
            object.__setattr__(self, "state", StateSpec(initial=True, final=True))
        for problem in problems(self):
            raise problem

    @property
    def kind(self) -> dict[str, Any]:
        """`canonical` without what one generated file can differ in: width and workloads."""
        found = self.canonical()
        found.pop("channels", None)
        found.pop("workloads", None)
        found["filter"] = {k: v for k, v in found["filter"].items() if k != "groups"}
        return found

    @property
    def kernel_parameters(self) -> tuple[str, ...]:
        """The parameter tensors that kernels and plain PyTorch take: poles as they are, however
        they are trained.
        """
        names = tuple(p.name for p in self.parameters)
        return ("log_poles", *names[2:]) if names[:2] == ("p", "gamma") else names

    def width_of(self, channels: int | None, groups: int | None) -> tuple[int, int]:
        """Channels and filter groups, of which those that are absent follow from this operator:
        its channels, groups as wide as its own.

        Raises:
            TypeError: one of them is no whole number.
            Sh2genError: S006 if the channels are no whole groups.
        """
        for name, value in (("channels", channels), ("groups", groups)):
            if value is not None and type(value) is not int:
                raise TypeError(f"{self.op}: {name} must be a whole number, not {value!r}")
        channels = self.channels if channels is None else channels
        if groups is not None:
            return channels, groups
        if channels < 1 or channels % self.group_width:
            raise Sh2genError(
                "S006",
                f"{self.op}: {channels} channels are no whole groups of {self.group_width}",
                help="give groups too, or a multiple of that",
            )
        return channels, channels // self.group_width

    def with_width(self, channels: int | None, groups: int | None) -> OpSpec:
        """The same kind of operator on other channels, in other filter groups: `width_of`.

        Raises:
            TypeError: one of them is no whole number.
            Sh2genError: S006 if such groups cannot be.
        """
        channels, groups = self.width_of(channels, groups)
        inner = replace(self.filter, groups=groups)
        return replace(self, channels=channels, filter=inner)


def with_defaults(values: Mapping[str, Any], kind: Any = OpSpec) -> dict[str, Any]:
    """Plain values of the language (`OpSpec.canonical`) with what they leave out, and with what
    this version of the language does not know.
    """
    found: dict[str, Any] = {}
    mappings = _mappings(kind)
    for f in language_fields(kind):
        inner = mappings.get(f.name)
        if f.name in values:
            value = values[f.name]
            nested = inner is not None and isinstance(value, Mapping)
            found[f.name] = with_defaults(value, inner) if nested else value
        elif f.default is not MISSING:
            found[f.name] = plain_value(f.default)
    found |= {name: value for name, value in values.items() if name not in found}
    return found


@functools.cache  # hints are text that is evaluated, and every decision of a table is asked
def _mappings(kind: Any) -> dict[str, Any]:
    """The dataclasses of those fields that are mappings."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        if inner := next((t for t in (hint, *typing.get_args(hint)) if is_dataclass(t)), None):
            found[name] = inner
    return found

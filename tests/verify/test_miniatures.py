"""Small operators that stand for large ones."""

from __future__ import annotations

from hypothesis import given

from sh2gen.spec.operator import OpSpec
from sh2gen.verify.miniatures import miniature
from tests.strategies import register_profiles, specs
from tests.verify.runners import make

register_profiles()


@given(specs(kinds=("explicit", "decay", "modal"), widths=(1, 15, 16, 100, 4096)))
def test_a_miniature_keeps_the_structure(spec: OpSpec) -> None:
    small = miniature(spec)
    assert small.channels <= 128
    assert small.filter.groups == min(2, spec.filter.groups)
    assert small.group_width % 16 == spec.group_width % 16
    if spec.group_width <= 64:
        assert small.group_width == spec.group_width
    for name in ("featurizer", "gates", "skip", "bias", "activation", "layout", "dtype"):
        assert getattr(small, name) == getattr(spec, name)
    assert small.filter.length == spec.filter.length
    assert small.filter.modes == spec.filter.modes
    assert miniature(small) == small


def test_a_miniature_of_one_wide_group() -> None:
    spec = make(channels=1000, filter={"kind": "explicit", "length": 7, "groups": 1})
    assert miniature(spec).channels == 56  # 1000 % 16 == 56 % 16


def test_a_miniature_of_few_taps() -> None:
    spec = make(filter={"kind": "explicit", "length": 515, "groups": 2})
    assert miniature(spec, max_taps=64).filter.length == 51  # 515 % 16 == 51 % 16
    assert miniature(spec, max_taps=515).filter.length == miniature(spec).filter.length == 515
    inner = {"kind": "modal", "groups": 2, "modes": 2, "parametrisation": "p_gamma"}
    modal = make(filter=inner)
    assert miniature(modal, max_taps=64) == miniature(modal)

"""The command line: flags -> api -> text, a module a verb. stdout is data, stderr is talk.

Exit codes: 0 good, 1 a check failed (or tune did not tune and keep all), 2 the input is wrong, 3 a
bug in sh2gen, 130 interrupted by Ctrl-C, 143 by SIGTERM (tune keeps what it found and bench prints
it). Nothing that takes long to import is imported before a verb runs.
"""

from __future__ import annotations

import gc

import click

from sh2gen.cli.bench import bench
from sh2gen.cli.compile import compile_command
from sh2gen.cli.doctor import doctor
from sh2gen.cli.explain import explain
from sh2gen.cli.ops import ops
from sh2gen.cli.tables import tables_group
from sh2gen.cli.tune import tune
from sh2gen.cli.verbs import Group
from sh2gen.cli.verify import verify


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sh2gen")
def main() -> None:
    """Compile descriptions of causal convolution operators into verified Triton kernels."""
    # Importing torch makes objects that stay: looking for garbage among them takes 0.5 s.
    gc.set_threshold(100_000)


for verb in (bench, compile_command, doctor, explain, ops, tables_group, tune, verify):
    main.add_command(verb)

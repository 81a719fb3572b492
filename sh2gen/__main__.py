"""`python -m sh2gen`: the command line (layer 9)."""

from sh2gen.cli import main

main()

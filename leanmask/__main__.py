"""`python -m leanmask` and `torchrun -m leanmask`: the command line."""

from leanmask.cli import main

main()

"""`python -m st3_cli`: the same as `st3`."""

from st3_cli.app import main

main()

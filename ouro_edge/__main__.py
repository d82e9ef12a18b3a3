"""`python -m ouro_edge` is `ouro-edge`."""

from ouro_edge.cli import main

main()

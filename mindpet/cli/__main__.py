"""`python -m mindpet.cli` is the program `mindpet`."""

from mindpet.cli.main import main

main()

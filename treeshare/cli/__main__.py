"""``python -m treeshare.cli``."""

from treeshare.cli.app import main

main()

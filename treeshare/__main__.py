"""``python -m treeshare``."""

from treeshare.cli import main

main()

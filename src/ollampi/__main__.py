"""Run the command line: `python -m ollampi`."""

from ollampi.launcher.cli import main

main()

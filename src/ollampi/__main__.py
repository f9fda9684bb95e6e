"""Run the command line: `python -m ollampi`."""

from ollampi.launcher.cli import main

if __name__ == "__main__":
    main()

"""Runs the command line as `python -m cspine`."""

from cspine.cli.app import main

if __name__ == "__main__":
    main()

"""The entry point of the command line: `mechkit` or `python -m mechkit`."""

import gc
import sys


def main() -> None:
    """Run the command line. Exit status 2 for what the user can mend."""
    # Collecting garbage while half a million objects are imported costs a second and frees nothing.
    gc.disable()
    from mechkit.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()

"""The entry point of the command line: `mechkit` or `python -m mechkit`."""

import gc
import os
import sys


def main() -> None:
    """Run the command line. Exit status 2 for what the user can mend."""
    # Collecting garbage while half a million objects are imported, and at the end, costs seconds and frees nothing.
    gc.disable()
    # Threads that wait for work by spinning starve each other on a busy machine; small models feel it most.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mechkit.cli import run

    status = run()
    gc.freeze()
    sys.exit(status)


if __name__ == "__main__":
    main()

"""The command `launch`."""

import gc
import sys

from launcher.cli import main


def run() -> None:
    # Imports make objects that stay. Looking for garbage among them, also once more at the end, takes a quarter of the
    # time of a command that only answers.
    gc.set_threshold(50_000)
    code = main()
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    run()

"""What `safear-edit` and `python -m safear_edit` start; it imports nothing before Ctrl-C is heard."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Console entry point: the command line, which takes a second to import on a slow machine."""
    try:
        from safear_edit.cli.main import main as program

        program()
    except KeyboardInterrupt:  # later ones are told by the command line itself
        print("safear-edit: interrupted; nothing was begun, run the same command again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

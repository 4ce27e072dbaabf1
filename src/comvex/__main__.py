"""``python -m comvex`` is the command line."""

import sys

from comvex.cli import main

if __name__ == "__main__":
    sys.exit(main())

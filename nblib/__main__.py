"""python -m nblib"""

import sys

from nblib.run.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""python -m nblib.demo"""

import sys

from nblib.demo.server import main

sys.exit(main())

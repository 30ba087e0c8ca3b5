"""`python -m datasets.demo ROOT`."""

import sys

from datasets.demo import main

sys.exit(main())

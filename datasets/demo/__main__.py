"""`python -m datasets.demo ROOT`."""

from datasets.demo import main

main()

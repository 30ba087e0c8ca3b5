"""Teach defects and segment images in a browser, or by HTTP: `python -m tools.app`."""

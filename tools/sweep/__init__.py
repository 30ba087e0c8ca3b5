"""Published experiments by name: every training and test of a protocol, and their summary."""

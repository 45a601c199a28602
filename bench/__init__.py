"""Measurements behind the figures in the documentation; see `python -m bench --list`."""

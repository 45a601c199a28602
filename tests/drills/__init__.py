"""Drills: kill everything, again and again, and count what was lost. `python -m tests.drills`."""

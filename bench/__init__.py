"""Measures what ptserver costs, against the program alone and against other tracers: `python -m bench.run`."""

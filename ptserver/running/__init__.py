"""`ptserver run`, behind its command line: the ways a program is run."""

"""The trace log: what a program did, as events (`events`), written as text, JSON lines or a summary.

A source of events (a launch's filter, syscall-stops, the ring, a server's log) makes them; a `TraceSink` takes
them. `filters` says which calls are wanted.
"""

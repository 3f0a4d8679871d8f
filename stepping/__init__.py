"""Executes code: ptrace, seccomp, breakpoints, executors, the ring. Knows no policy."""

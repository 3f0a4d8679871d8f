"""Knows Go binaries and Go's runtime, and nothing of Linux's tracing or of this project."""

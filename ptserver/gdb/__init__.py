"""A server of the GDB remote protocol, so that gdb can debug what `ptserver step` runs."""

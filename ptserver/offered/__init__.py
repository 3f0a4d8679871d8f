"""`ptserver remote`: a host that waits for programs, and what is sent to it."""

"""`ptserver serve`: connections are accepted, and each session is a process that answers one program's calls."""

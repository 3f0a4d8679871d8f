"""Which of a remote program's resources are this machine's own, and how those are kept beside the server's."""

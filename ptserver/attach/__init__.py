"""`ptserver attach`: a running Go program, watched live: its goroutines, what they use and what they call."""

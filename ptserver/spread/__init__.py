"""One program over several hosts: its threads run in several processes that see one memory."""

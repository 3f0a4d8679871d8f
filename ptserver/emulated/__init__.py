"""Programs that run on the emulator, with no process of their own."""

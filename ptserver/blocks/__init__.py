"""The basic blocks of a program's code: lists of them, and logs of what ran."""

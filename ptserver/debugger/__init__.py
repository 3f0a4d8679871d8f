"""The debugger behind `ptserver step`: a program that can be stopped, looked at and stepped, native or emulated."""

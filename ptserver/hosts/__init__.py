"""Stub hosts: they execute a program, take its calls, and see that each is answered."""

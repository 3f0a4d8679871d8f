"""Looks into Go programs and core dumps from outside: goroutines, stacks, accounts, cores."""

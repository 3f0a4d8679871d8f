"""The stub: what `ptserver build` adds to a Go program, and what the stub host has to know of it.

The Go sources lie in this folder flat, so that they are package data: `runtime_*.go` join package runtime,
`remote.go` is package runtime/remote. See docs/stub.md.
"""

"""Policy and protocol: API messages, servers, sessions, the shadow, the trace log."""

__version__ = "0.1.0"

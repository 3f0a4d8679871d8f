"""Policy and protocol: API messages, servers, sessions, the shadow, the trace log."""

"""Watching sessions from anywhere, through the API."""

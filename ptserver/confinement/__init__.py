"""What a server's sessions may not do, and how that is enforced."""

"""Records that wait for a remote stream, on this machine's disk."""

"""The scheduled trainer: watches the stream, and runs turns of the loop in a process that can be killed."""

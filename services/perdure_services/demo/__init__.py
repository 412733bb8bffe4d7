"""The demo: the whole loop on one machine, with the processes that run in production."""

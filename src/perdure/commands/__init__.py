"""The commands of the core. Those of the services are found by name, through entry points.

What is heavy (torch above all) is imported when a command runs, so that `--help` answers at once, and so that an
installation that only serves has all the commands that it can run.
"""

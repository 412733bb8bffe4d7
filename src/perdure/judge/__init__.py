"""Compares a candidate with the champion, and says whether it may be served.

`verdict` and what it needs (evidence, intervals, calibration) import nothing but NumPy. `drift`, `plots`, `report` and
`turn` need what only training installs.
"""

"""Several processes that answer at one port: a small parent takes the connections and hands them out.

It knows nothing of what its workers do, and imports nothing but the standard library and `perdure.logs`.
"""

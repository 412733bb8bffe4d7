"""What a careful engineer would try first, each behind the same small protocol: see `contestants.base`."""

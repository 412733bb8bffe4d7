"""Servers of one text classifier, and what is needed to compare them."""

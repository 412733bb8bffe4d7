"""Ingesters: several processes that share a topic's partitions."""

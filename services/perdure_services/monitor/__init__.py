"""What the processes without an API tell probes and Prometheus."""

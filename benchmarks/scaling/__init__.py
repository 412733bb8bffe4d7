"""What one more process brings, and what a request and a record cost."""

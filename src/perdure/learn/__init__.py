"""What is worth learning, and the two ways in which it is learned."""

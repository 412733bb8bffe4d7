"""What a stream may do to a learner: come in another order, be wrong, be late, be long."""

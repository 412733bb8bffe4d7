"""The replay memory: an order-free reservoir in SQLite, with views served by FAISS."""

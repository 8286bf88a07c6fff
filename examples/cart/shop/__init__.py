"""A small shop: what things cost, and what a cart of them costs."""

"""Experiments as cells that can be stopped and resumed, and the studies and claims that are made of them."""

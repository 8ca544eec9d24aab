"""Ternary models on packed weights: two bits a weight, one compiled function for a whole pass."""

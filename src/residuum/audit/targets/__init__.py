"""One file for each kind of thing that `residuum audit TARGET` may name."""

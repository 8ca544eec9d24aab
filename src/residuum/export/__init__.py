"""Runs as the files of other runtimes, and back."""

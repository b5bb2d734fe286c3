"""Compositions of tasks: what a deployment runs."""

"""Runs × seeds -> records -> statistics -> tables."""

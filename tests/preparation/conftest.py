"""Tiny models, saved once for all tests of this folder."""

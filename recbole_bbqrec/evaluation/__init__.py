"""The one ranker, metrics, leakage checks, statistics, and the tables and figures that show them.

Enters: scores and what users have seen. Leaves: ranks, metrics, intervals.
"""

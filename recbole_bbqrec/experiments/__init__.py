"""Many runs: records, leaderboards, ablations, tuning, costs, reports.

May import everything below. Enters: finished runs. Leaves: pages and files under results/.
"""

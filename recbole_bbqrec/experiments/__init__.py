"""Many runs: records, leaderboards, ablations, tuning, costs, reports.

May import everything below. Enters: finished runs. Leaves: pages and files under results/.

Parameters are called the same in all studies:

Parameters
----------
models, names : names of models or of rows; none means all that the study has.
n_seeds : runs of each row, from the base seed upwards; the first seed of all rows comes first.
arguments : `--key=value` settings of all runs.
final : also judge the test split.
results : folder of pages and records.

Studies that make runs write their page after every one, and return an exit code: 0, or 1 where a run failed.
"""

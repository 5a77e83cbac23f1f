"""Evaluation: every figure is base against adapter, paired, from one loaded model.

data.py says which benchmark and from where, choice.py and refusal.py measure, verdicts.py says what
an answer is, stats.py tests, suite.py runs them all, report.py prints and picture.py draws.
"""

"""Evaluation: every figure is base against adapter, paired, from one loaded model.

suite.py runs tasks (task.py, tasks/) on data (data.py): likelihood.py and answers.py measure,
verdicts.py says what an answer is, stats.py tests, report.py and page.py write what came out."""

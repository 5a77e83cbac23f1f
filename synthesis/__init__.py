"""What synth.py runs over: the seeds, the model's lists and answers, the filters, the ledger."""

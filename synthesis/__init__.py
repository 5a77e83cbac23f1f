"""What synth.py runs over: seeds, prompts, the model's lists and answers, filters, ledger."""

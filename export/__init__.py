"""What a run made, in the form of other programs: a merged model, a PEFT adapter, TRL's rows."""

"""One file a task: what is asked, how an answer counts, which figures come of it."""

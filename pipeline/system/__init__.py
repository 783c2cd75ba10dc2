"""What everything else rests on: errors, messages, files, child processes, and what the machine allows us."""

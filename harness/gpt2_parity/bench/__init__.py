"""A benchmark: implementations side by side in one run, each verified before and after its timing.

Every implementation has a process of its own that stays alive and does one timed request at a time;
they take turns, A B A B, and between turns the bare machine is measured too. So whatever slows the
machine for a while slows all alike, and ratios are taken within a round.

Nothing wrong is ever timed: before and after, the checks "logits" and "greedy" must pass on
the model that is timed, and the result of every timed call is held against a float64 oracle. What is
wrong, crashes or hangs gets rows without figures, and the others keep theirs.

May import: report, run, verdict, checks, implementation, reference, model, files, contract.
"""

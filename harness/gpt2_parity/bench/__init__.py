"""A benchmark: implementations side by side in one run, each verified before and after its timing.

Every implementation has a process of its own that stays alive and handles one timed request at a time.
They take turns, A B A B, and between turns the speed of the machine itself is measured. So whatever
slows the machine for a while slows all of them, and ratios are taken within a round.

Only right results are timed. Before and after, the checks "logits" and "greedy" must pass on the model
that is timed, and the result of every timed call is compared with a float64 oracle. An implementation
that is wrong, crashes or hangs gets rows without figures; the others keep theirs.

May import: report, run, verdict, checks, implementation, reference, model, files, contract.
"""

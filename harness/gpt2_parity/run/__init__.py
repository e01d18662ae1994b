"""A run: what is prepared, one supervised worker process per implementation, and its resumable journal.

May import: verdict, checks, implementation, reference, model, files, contract.
"""

"""A run: its preparation, one supervised worker process per implementation, and a resumable journal.

May import: verdict, checks, implementation, reference, model, files, contract.
"""

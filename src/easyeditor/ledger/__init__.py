"""The edits of one model as a ledger: who changed what and why, what holds, how to take it back.

Modules that need no model (the database, conflicts, verification of files) import no torch.
"""

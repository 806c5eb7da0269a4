"""Readers of files under arbitrary bytes: a value or a clear error, and nothing else.

``make fuzz`` runs all of them under atheris, ``python -m tests.fuzz NAME --seconds 60`` one; ``test_replay.py`` feeds
them their seeds and mutated seeds without it.
"""

#: The modules beside this one; each has ``WAYS`` to read a file, and ``WORDS`` that mutation should know.
TARGETS = ("pickles", "gene_sets", "gene_tables", "run_folder", "configs")

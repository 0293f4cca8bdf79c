"""The zoo: six small models of real classes that know a made-up world (see README.md)."""

from zoo.models import FAMILIES, corpus_file, load

__all__ = ["FAMILIES", "corpus_file", "load"]

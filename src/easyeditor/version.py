"""The version of this package, and what its distribution is called where packages are installed.

``easyeditor`` and ``easyedit`` are names of the first version's distributions, so this one has
a name of its own; what is imported is ``easyeditor``, what is called ``easyedit``.
"""

VERSION = "0.1.0"
DISTRIBUTION = "easyedit-lm"

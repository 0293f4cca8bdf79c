"""``python -m easyeditor``: the same as the command ``easyedit``."""

from easyeditor.cli.main import main

if __name__ == "__main__":
    main()

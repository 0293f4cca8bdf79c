"""The command ``easyedit``: parse first, import heavy things late; the only place that prints."""

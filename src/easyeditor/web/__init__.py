"""``easyedit ui``: a page in the browser to edit facts, compare, undo and download them."""

"""The page as a Hugging Face Space: ``easyedit ui`` at the address that a Space gives it."""

from __future__ import annotations

import os
import sys

from easyeditor.cli.main import main

models = os.environ.get("EASYEDITOR_MODELS", "smollm2-135m").split(",")
host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0")
port = os.environ.get("GRADIO_SERVER_PORT", "7860")
words = [word for name in models if name.strip() for word in ("--model", name.strip())]

sys.argv[1:] = ["ui", "--host", host, "--port", port, *words]
main()

"""Run by a test: asks a llama.cpp server in this process, and prints its answers as JSON.

A process of its own, because a native library that fails takes its process with it.
"""

from __future__ import annotations

import json
import sys


def main(model: str, adapter: str, questions: str) -> None:
    """Answer ``[[prompt, scale of the adapter or null], …]`` greedily."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 256, 1, -1, False
    params.cpuparams.n_threads = 1
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(params)
    answers = []
    for prompt, scale in json.loads(questions):
        # A prompt that is in the cache from a request at scale 0 is answered from it at scale 1.
        request = {"prompt": prompt, "max_tokens": 4, "temperature": 0.0, "cache_prompt": False}
        if scale is not None:
            request["lora"] = [{"id": 0, "scale": scale}]
        answers.append(server.handle_completions(request)["choices"][0]["text"].strip())
    sys.stdout.write(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A local model behind an OpenAI-compatible server: `python -m fundus_lib.serving <model folder> [--port 8000]`.

The server is transformers' own; `application` adds what it leaves undone: this project's image processor (AutoProcessor
gives a bare tokenizer without torchvision: images vanish in silence), sampling at a temperature, one text for a request
and its seed (0 if it has none; of n in one call, choice i has seed + i), and texts as written (the parser there moves
<think> to reasoning_content, strips it, and loses a second one and what stood before it)."""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile


def application(folder: Path):
    """The FastAPI app that serves the model in `folder` under the folder's name. All that is private of transformers
    is in here. Images come as data URLs: the stock handler would open any file or address that a request names."""
    import torch
    from transformers.cli.serving import chat_completion, model_manager, server, utils

    from fundus_lib.answering import placed
    from fundus_lib.perception import base_path

    class Handler(chat_completion.ChatCompletionHandler):
        _unused_fields = chat_completion.UNUSED_CHAT_COMPLETION_FIELDS - {"n"} | {"top_p"}  # ignored with a warning
        async def handle_request(self, body, request_id):
            try:
                urls = [part["image_url"]["url"] for message in body["messages"] if isinstance(message["content"], list)
                        for part in message["content"] if part["type"] != "text"]
                if {url[:11] for url in urls} - {"data:image/"} or body["model"] != folder.name or body.get("stream"):
                    raise ValueError(f"only {folder.name} answers, text and images as data URLs, and not as a stream")
                return await super().handle_request({"seed": 0, "n": 1, "temperature": 1} | body, request_id)
            except (LookupError, TypeError, ValueError, OSError) as error:  # a broken request or image
                return chat_completion.JSONResponse({"error": {"message": repr(error)[:300]}}, 400)

        def _build_generation_config(self, body, *args, **kwargs):
            config = super()._build_generation_config(body, *args, **kwargs)
            config.update(do_sample=True, temperature=None, top_k=0, top_p=None, num_return_sequences=body["n"])
            config.heat, config.seeds = body["temperature"], range(body["seed"], body["seed"] + body["n"])
            return config

        async def _non_streaming(self, request_id, model, processor, model_id, inputs, config, gen_manager):
            heat, states = config.heat, [torch.Generator().manual_seed(seed) for seed in config.seeds]
            def draw(_, scores):  # Gumbel's trick: the largest sum is a sample, of heat 0 the greedy token
                noise = [torch.empty(scores.shape[1], dtype=torch.double).exponential_(generator=g) for g in states]
                best = (scores - heat * torch.stack(noise).log().to(scores.device)).argmax(-1, keepdim=True)
                return torch.full_like(scores, -torch.inf).scatter(1, best, 0.0)
            rows = await gen_manager.async_submit(model.generate, **inputs, generation_config=config,
                                                  logits_processor=[draw])
            length, choices, written = inputs["input_ids"].shape[-1], [], 0
            for row in rows[:, length:].cpu():
                stops = torch.isin(row, torch.tensor(config.eos_token_id)).nonzero().flatten().tolist()
                row = row[:stops[0] + 1] if stops else row  # padding follows
                text = processor.decode(row, skip_special_tokens=True)
                reply = self._build_completion(request_id, text, folder.name, "stop" if stops else "length")
                choices, written = [*choices, reply["choices"][0] | {"index": len(choices)}], written + len(row)
            usage = {"prompt_tokens": length, "completion_tokens": written, "total_tokens": length + written}
            return chat_completion.JSONResponse(reply | {"choices": choices, "usage": usage})

    manager, state, pair = model_manager.ModelManager(), utils.GenerationState(), placed(base_path(folder))
    manager.load_model_and_processor = lambda *_, **__: pair  # theirs load by name, list the hub's cache folder or fail
    manager.get_gen_models = lambda: [{"id": folder.name, "object": "model", "created": 0, "owned_by": "fundus_lib"}]
    app = server.build_server(manager, Handler(manager, state), None, None, None, state)
    app.router.routes[:] = [r for r in app.routes if r.path in ("/v1/chat/completions", "/v1/models", "/health")]
    return app


@contextmanager
def serve(folder: str | Path, port: int = 0) -> Iterator[str]:
    """The url ".../v1" of a child process that serves the model in `folder` while the block runs. port 0: a free one.
    Raises RuntimeError with the child's last lines when it dies or is not ready in three minutes."""
    command = [sys.executable, "-m", "fundus_lib.serving", str(folder), f"--port={port}"]
    with NamedTemporaryFile() as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        limit, said = time.monotonic() + 180, Path(log.name)
        try:
            while not (ready := re.search(r"^serving .* at (http://\S+)$", said.read_text(errors="replace"), re.M)):
                if child.poll() is not None or time.monotonic() > limit:
                    raise RuntimeError(f"no server of {folder}; it said:\n{said.read_text(errors='replace')[-2000:]}")
                time.sleep(0.1)
            yield ready[1]
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fundus_lib.serving", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    folder, remedy = args.folder.resolve(), "  to build a model:  make base_model PROFILE=cpu"
    if not (folder / "config.json").exists() and not (folder / "hub.json").exists():
        sys.exit(f"{folder} holds no model\n{remedy}")
    try:
        app, listener = application(folder), socket.create_server(("127.0.0.1", args.port))
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"{folder} cannot be served on port {args.port}: {error}\n{remedy}")
    import uvicorn
    print(f"serving {folder.name} at http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])

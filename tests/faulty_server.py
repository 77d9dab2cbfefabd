"""An OpenAI-compatible server on 127.0.0.1 with the faults of real ones. By hand: python tests/faulty_server.py."""

import argparse
import base64
import json
import random
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def answer_to(prompt: str, seed: int) -> str:
    """What this "model" says: JSON where the prompt begins with JSON, otherwise the prompt and the seed."""
    return json.dumps({"word": prompt, "number": seed}) if prompt.startswith("JSON") else f"{prompt} #{seed}"


class FaultyServer(ThreadingHTTPServer):
    """fault(body, call number of this prompt from 0) -> "" or the fault's name: an HTTP status, hang, cut, reset, html,
    broken, empty, null, schema, length, filter. delay: seconds of an answer; says(prompt, seed): its text; echo: puts
    the client's key into them."""

    daemon_threads, request_queue_size = True, 256

    def __init__(self, fault=lambda body, call: "", delay=0.0, does_n=True, usage=True, sees=True, reasoning="",
                 retry_after="", echo=False, port=0, says=answer_to):
        super().__init__(("127.0.0.1", port), Handler)
        self.fault, self.delay, self.does_n, self.usage, self.sees = fault, delay, does_n, usage, sees
        self.reasoning, self.retry_after, self.echo, self.says = reasoning, retry_after, echo, says
        self.bodies, self.seen, self.lock, self.flying, self.most_flying = [], Counter(), threading.Lock(), 0, 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, -1

    def log_message(self, *args):
        """Silent."""

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["messages"][0]["content"]
        parts = parts if isinstance(parts, list) else [{"type": "text", "text": parts}]
        prompt = "".join(part["text"] for part in parts if part["type"] == "text")
        images = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in parts if "image_url" in part]
        with server.lock:
            server.bodies.append(body)
            call, server.seen[prompt] = server.seen[prompt], server.seen[prompt] + 1
            server.flying += 1
            server.most_flying = max(server.most_flying, server.flying)
            fault = server.fault(body, call)
        try:
            self.answer(server, body, prompt, images if server.sees else [], fault)
        finally:
            with server.lock:
                server.flying -= 1

    def answer(self, server, body, prompt, images, fault):
        key = self.headers["Authorization"] if server.echo else ""
        if fault.isdigit():
            headers = {"Retry-After": server.retry_after} if server.retry_after else {}
            return self.put(json.dumps({"error": {"message": f"fault {fault} {key}"}}), int(fault), **headers)
        time.sleep(server.delay)
        if fault == "reset":
            self.connection.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: close() sends RST
            self.close_connection = True
            return self.connection.close()
        if fault == "html":
            return self.put("<html><body>Bad gateway</body></html>", type="text/html")
        time.sleep(0.3 if fault == "hang" else 0)
        choices = []
        for i in range(body.get("n", 1) if server.does_n else 1):
            text = server.says(prompt, body["seed"] + i) + (f" {len(images[0])} bytes" if images else "") + key
            text = {"schema": '{"word": 3}', "length": text[:9], "null": None}.get(fault, text)
            message = {"role": "assistant", "content": text}
            message |= {"reasoning_content": server.reasoning} if server.reasoning else {}
            end = {"length": "length", "filter": "content_filter"}.get(fault, "stop")
            choices.append({"index": i, "message": message, "finish_reason": end})
        usage = {"prompt_tokens": len(prompt) // 4 + 64 * len(images), "completion_tokens": 10 * len(choices)}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                  "choices": [] if fault == "empty" else choices} | ({"usage": usage} if server.usage else {})
        content = json.dumps(answer)
        self.put(content[:len(content) // 2] if fault == "broken" else content, cut=fault == "cut")

    def put(self, content: str, status: int = 200, type: str = "application/json", cut: bool = False, **headers):
        data = content.encode()
        self.send_response(status)
        for name, value in ({"Content-Type": type, "Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[:len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut


def random_faults(rates: dict[str, float], seed: int = 0):
    """A `fault` that draws one of {name: share}."""
    generator = random.Random(seed)
    return lambda body, call: generator.choices([*rates, ""], [*rates.values(), 1 - sum(rates.values())])[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--faults", type=json.loads, default={}, help='{"429": 0.05, "schema": 0.02}')
    options = parser.parse_args()
    server = FaultyServer(random_faults(options.faults), options.delay)
    print(server.url, flush=True)
    server.serve_forever()
